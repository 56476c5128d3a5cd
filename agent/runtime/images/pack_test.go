package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/klauspost/compress/zstd"
)

// multi writes an OCI archive with one image for several machines, and returns which layer is for which.
func multi(t *testing.T, file string, all ...v1.Platform) map[string]string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	layers, idx := map[string]string{}, v1.ImageIndex(empty.Index)
	for _, p := range all {
		img, err := random.Image(500, 1)
		must(err)
		cfg, err := img.ConfigFile()
		must(err)
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture, cfg.Variant = p.OS, p.Architecture, p.Variant
		img, err = mutate.ConfigFile(img, cfg)
		must(err)
		l, err := img.Layers()
		must(err)
		digest, err := l[0].Digest()
		must(err)
		layers[digest.Hex] = p.String()
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	must(err)
	must(path.AppendIndex(idx, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "registry.test/multi:1"})))
	out, err := os.Create(file)
	must(err)
	w := tar.NewWriter(out)
	must(errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), out.Close()))
	return layers
}

// TestRepackOfAFlatArchive: one that lists a manifest for each machine under one name.
func TestRepackOfAFlatArchive(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	layers := map[string]string{}
	for _, arch := range []string{"arm64", "amd64"} {
		img, err1 := random.Image(500, 1)
		cfg, err2 := img.ConfigFile()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture = "linux", arch
		img, err = mutate.ConfigFile(img, cfg)
		l, err1 := img.Layers()
		d, err2 := l[0].Digest()
		// Nothing but the configuration says what it is for.
		if err := errors.Join(err, err1, err2, path.AppendImage(img,
			layout.WithAnnotations(map[string]string{"io.containerd.image.name": "flat"}))); err != nil {
			t.Fatal(err)
		}
		layers[d.Hex] = arch
	}
	from := filepath.Join(out, "flat.tar")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	for want, sel := range map[string]Selection{
		"arm64": {Platforms: []string{"linux/arm64"}}, "amd64": {Platforms: []string{"linux/amd64"}},
		"amd64 arm64": {Platforms: []string{"linux/amd64", "linux/arm64"}},
	} {
		file := filepath.Join(out, strings.ReplaceAll(want, " ", "-")+".tar.zst")
		names, err := Repack(t.Context(), from, file, sel)
		if err != nil || !slices.Equal(names, []string{"docker.io/library/flat:latest"}) {
			t.Fatalf("%s: %v, %v", want, names, err)
		}
		if got := strings.Join(layersIn(t, file, layers), " "); got != want {
			t.Errorf("kept %s, want %s", got, want)
		}
	}
}

// layersIn says for which machines an archive has layers.
func layersIn(t *testing.T, file string, layers map[string]string) []string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	var out []string
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := layers[filepath.Base(h.Name)]; ok {
			out = append(out, p)
		}
	}
}

func TestRepackKeepsWhatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "multi.tar")
	layers := multi(t, from, v1.Platform{OS: "linux", Architecture: "amd64"},
		v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"},
		v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, v1.Platform{OS: "windows", Architecture: "amd64"})
	for name, c := range map[string]struct {
		sel  Selection
		want string
		err  string
	}{
		"one": {Selection{Platforms: []string{"linux/arm64"}}, "linux/arm64/v8", ""},
		"two": {Selection{Platforms: []string{"linux/amd64", "linux/arm/v7"}}, "linux/amd64 linux/arm/v7", ""},
		"all": {Selection{Platforms: []string{"linux/amd64"}, All: true},
			"linux/amd64 linux/arm/v7 linux/arm64/v8 windows/amd64", ""},
		"missing": {Selection{Platforms: []string{"linux/amd64", "linux/riscv64"}, All: true}, "",
			"registry.test/multi:1 is missing for linux/riscv64"},
		"nonsense": {Selection{Platforms: []string{"a/b/c/d"}}, "", "a/b/c/d"},
	} {
		t.Run(name, func(t *testing.T) {
			out := t.TempDir()
			file := filepath.Join(out, "x.tar.zst")
			names, err := Repack(t.Context(), from, file, c.sel)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || !slices.Equal(names, []string{"registry.test/multi:1"}) {
				t.Fatalf("%v, %v", names, err)
			}
			if got := strings.Join(layersIn(t, file, layers), " "); got != c.want {
				t.Errorf("kept %s, want %s", got, c.want)
			}
			// What was trimmed can be trimmed again, and is the same then.
			again := filepath.Join(out, "y.tar.zst")
			if _, err := Repack(t.Context(), file, again, c.sel); err != nil {
				t.Fatal(err)
			}
			one, err1 := os.ReadFile(file)
			two, err2 := os.ReadFile(again)
			if err := errors.Join(err1, err2); err != nil || !bytes.Equal(one, two) {
				t.Errorf("packed again it is another file: %v", err)
			}
			if left, err := os.ReadDir(out); err != nil || len(left) != 2 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
	if _, err := Repack(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "x"), Selection{}); !errors.Is(err,
		fs.ErrNotExist) {
		t.Error(err)
	}
}
