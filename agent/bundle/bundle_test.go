package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/umiak-io/umiak/internal/layout"
)

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755),
			os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

func gz(t testing.TB, text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, text)
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// oneKey signs all releases but those of somebody else.
var oneKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// release is the folder of one for amd64 and arm64, in the layout of scripts/release.
func release(t testing.TB) string {
	t.Helper()
	return releaseBy(t, must(oneKey())(t))
}

func releaseBy(t testing.TB, key *rsa.PrivateKey) string {
	t.Helper()
	dir := t.TempDir()
	der := must(x509.MarshalPKIXPublicKey(&key.PublicKey))(t)
	public := strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	files := map[string]string{
		"install.sh":   "UMIAK_RELEASE_VERSION='v9+umiak1'\nRELEASE_KEY='" + public + "'\n",
		"LICENSES.txt": "as is",
	}
	for _, n := range []string{"umiak-linux-amd64.gz", "umiak-agent-linux-amd64.gz", "umiak-linux-arm64.gz",
		"umiak-agent-linux-arm64.gz"} {
		files[n] = gz(t, n)
	}
	list := sums{}
	for n, text := range files {
		list[n] = fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	}
	files["SHA256SUMS"] = list.String()
	hash := sha256.Sum256([]byte(list.String()))
	files["SHA256SUMS.sig"] = string(must(rsa.SignPKCS1v15(nil, key, crypto.SHA256, hash[:]))(t))
	write(t, dir, files)
	return dir
}

// image writes one as docker save does.
func image(t testing.TB, file, ref, arch string) string {
	t.Helper()
	img := must(random.Image(1000, 2))(t)
	cfg := must(img.ConfigFile())(t).DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	img = must(mutate.ConfigFile(img, cfg))(t)
	if err := tarball.MultiWriteToFile(file, map[name.Tag]v1.Image{must(name.NewTag(ref))(t): img}); err != nil {
		t.Fatal(err)
	}
	return file
}

func config(t testing.TB) Config {
	return Config{Out: filepath.Join(t.TempDir(), "bundle.tar"), Release: release(t), Etc: t.TempDir(),
		Arches:   []string{"amd64"},
		Programs: true, Progress: io.Discard}
}

const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n"

func TestWhatGoesInComesOut(t *testing.T) {
	cfg := config(t)
	in := t.TempDir()
	write(t, in, map[string]string{"apps/web.yaml": "# a comment\n---\n" + pod,
		"apps/more/db.json": `{"apiVersion":"v1","kind":"Pod"}`, "apps/.hidden.yaml": "[",
		"apps/notes.txt": "", "s.yaml": "tls-san: [x]\n", "a.yaml": "token: secret\n"})
	cfg.Archives = []string{image(t, filepath.Join(in, "app.tar"), "registry.test/app:1", "amd64")}
	cfg.Manifests, cfg.ServerConfig, cfg.AgentConfig = []string{filepath.Join(in, "apps")}, filepath.Join(in,
		"s.yaml"), filepath.Join(in, "a.yaml")

	dry := cfg
	dry.DryRun = true
	planned := must(Create(t.Context(), dry))(t)
	if _, err := os.Stat(cfg.Out); err == nil {
		t.Error("a dry run wrote the bundle")
	}
	made := must(Create(t.Context(), cfg))(t)
	want := "{[umiak-agent-linux-amd64 umiak-linux-amd64] [app.tar.zst] [more/db.json web.yaml] [agent.yaml server.yaml]}"
	if got := fmt.Sprint(made.Contents); got != want || fmt.Sprint(planned.Contents) != want {
		t.Errorf("got %s, planned %v, want %s", got, planned.Contents, want)
	}
	if got := must(Verify(cfg.Out))(t); fmt.Sprint(got) != want {
		t.Errorf("verified %v", got)
	}
	if info := must(os.Stat(cfg.Out))(t); info.Mode().Perm() != 0o600 || info.Size() != made.Size {
		t.Errorf("it may hold a token: %v, size %d, said %d", info.Mode(), info.Size(), made.Size)
	}
	first := must(os.ReadFile(cfg.Out))(t)
	must(Create(t.Context(), cfg))(t)
	if !bytes.Equal(first, must(os.ReadFile(cfg.Out))(t)) {
		t.Error("the same again is another file")
	}
	if left := must(os.ReadDir(filepath.Dir(cfg.Out)))(t); len(left) != 1 {
		t.Errorf("left %v", left)
	}

	t.Setenv("TMPDIR", t.TempDir())
	dir, remove, err := Folder(t.Context(), cfg.Out)
	if err != nil {
		t.Fatal(err)
	}
	dirs := layout.Dirs{Data: "/data"}
	for server, want := range map[bool]string{
		true:  "images/app.tar.zst=/data/agent/images/app.tar.zst manifests/more/db.json=/data/server/manifests/more/db.json manifests/web.yaml=/data/server/manifests/web.yaml config/server.yaml=" + Settings,
		false: "images/app.tar.zst=/data/agent/images/app.tar.zst config/agent.yaml=" + Settings,
	} {
		var got []string
		for _, x := range must(Targets(dir, server, dirs))(t) {
			rel, _ := filepath.Rel(dir, x.File)
			got = append(got, rel+"="+x.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("server %v: %v", server, got)
		}
	}
	for name, c := range map[string]struct{ line, says string }{
		"changed":   {"images/app.tar.zst", "images/app.tar.zst is damaged"},
		"unlisted":  {"manifests/evil.yaml", "manifests/evil.yaml is not in"},
		"beside it": {"holiday.jpg", ""},
	} {
		file := filepath.Join(dir, c.line)
		before, was := os.ReadFile(file)
		write(t, dir, map[string]string{c.line: "x"})
		_, err := Targets(dir, true, dirs)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if err = os.Remove(file); was == nil {
			err = os.WriteFile(file, before, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remove()
	if left := must(os.ReadDir(os.Getenv("TMPDIR")))(t); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestRefuses(t *testing.T) {
	in := t.TempDir()
	write(t, in, map[string]string{"bad.yaml": "a: [", "none.yaml": "# nothing\n", "noobject.yaml": "a: b\n",
		"x.txt": "", "empty/y": "", "a/web.yaml": pod, "b/web.yaml": pod, "we b.yaml": pod,
		"broken.tar": "no archive", "out/is/here": ""})
	app := image(t, filepath.Join(in, "app.tar"), "registry.test/app:1", "amd64")
	raw := must(os.ReadFile(app))(t)
	write(t, in, map[string]string{"short.tar": string(raw[:len(raw)/2])})
	file := func(n string) string { return filepath.Join(in, n) }
	other := releaseBy(t, must(rsa.GenerateKey(rand.Reader, 2048))(t))
	for name, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"architecture of the release": {func(c *Config) { c.Arches = []string{"riscv64"} },
			"contains no umiak for riscv64"},
		"architecture": {func(c *Config) { c.Arches = []string{"mips"} },
			`"mips" is not one of amd64, arm, arm64, riscv64`},
		"no architecture": {func(c *Config) { c.Arches = nil }, "at least one architecture"},
		"no file":         {func(c *Config) { c.Out = "" }, "a file is required"},
		"no folder":       {func(c *Config) { c.Out = file("none/bundle.tar") }, "create a temporary folder"},
		"image of another machine": {func(c *Config) { c.Archives, c.Arches = []string{app}, []string{"arm64"} },
			"registry.test/app:1 is not for linux/arm64"},
		"no images":              {func(c *Config) { c.Archives = []string{file("broken.tar")} }, "not a tar archive"},
		"half an archive":        {func(c *Config) { c.Archives = []string{file("short.tar")} }, "cut short"},
		"the same archive twice": {func(c *Config) { c.Archives = []string{app, app} }, "would have the same name"},
		"no archive":             {func(c *Config) { c.Archives = []string{file("none.tar")} }, "no such file"},
		"no containerd": {func(c *Config) {
			c.Images, c.Socket = []string{"registry.test/app:1"},
				file("socket")
		}, "pack registry.test/app:1"},
		"no name": {func(c *Config) { c.Images = []string{"A:B:C"} }, "pack A:B:C"},
		"no YAML": {func(c *Config) { c.Manifests = []string{file("bad.yaml")} }, "bad.yaml: document 1"},
		"no object": {func(c *Config) { c.Manifests = []string{file("noobject.yaml")} },
			"apiVersion or kind is missing"},
		"nothing":      {func(c *Config) { c.Manifests = []string{file("none.yaml")} }, "no object"},
		"no manifest":  {func(c *Config) { c.Manifests = []string{file("x.txt")} }, "does not end with"},
		"no manifests": {func(c *Config) { c.Manifests = []string{file("empty")} }, "no manifest in"},
		"manifests of one name": {func(c *Config) { c.Manifests = []string{file("a"), file("b")} },
			"would have the same name"},
		"name with a space": {func(c *Config) { c.Manifests = []string{file("we b.yaml")} }, "only letters, digits"},
		"no settings":       {func(c *Config) { c.ServerConfig = file("none") }, "read settings"},
		"no release":        {func(c *Config) { c.Release = file("empty") }, "SHA256SUMS: no such file"},
		"none noted":        {func(c *Config) { c.Release = "" }, "set --release"},
		"another key": {func(c *Config) { c.Key = filepath.Join(other, "install.sh") },
			"signature of SHA256SUMS is invalid"},
		"no key": {func(c *Config) { c.Key = file("a.yaml") }, "no such file"},
		"damaged program": {func(c *Config) {
			write(t, c.Release,
				map[string]string{"umiak-linux-amd64.gz": "x"})
		}, "umiak-linux-amd64.gz is damaged"},
		"damaged installer": {func(c *Config) {
			write(t, c.Release, map[string]string{"install.sh": string(must(os.ReadFile(filepath.Join(c.Release,
				"install.sh")))(t)) + " "})
		}, "install.sh is damaged"},
		"forged list": {func(c *Config) { write(t, c.Release, map[string]string{"SHA256SUMS": "x"}) }, "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t)
			dir := filepath.Dir(cfg.Out)
			c.change(&cfg)
			_, err := Create(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %q", err, c.says)
			}
			if left := must(os.ReadDir(dir))(t); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Create(ctx, config(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestReleaseThatThisNodeWasInstalledFrom(t *testing.T) {
	dir := release(t)
	script := string(must(os.ReadFile(filepath.Join(dir, "install.sh")))(t))
	web := httptest.NewServer(http.StripPrefix("/m/v9+umiak1", http.FileServer(http.Dir(dir))))
	defer web.Close()
	parent := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(parent, "v9+umiak1")); err != nil {
		t.Fatal(err)
	}
	for base, fails := range map[string]string{dir: "", parent: "", "file://" + parent: "", web.URL + "/m": "",
		web.URL + "/no": "404", "http://127.0.0.1:1": "refused"} {
		cfg := config(t)
		cfg.Release = ""
		write(t, cfg.Etc, map[string]string{"install.sh": script, "umiak.env": "A='b'\nINSTALL_UMIAK_BASE_URL='" +
			base + "'\n"})
		_, err := Create(t.Context(), cfg)
		if (err == nil) != (fails == "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("%s: %v", base, err)
		}
	}
	// The key of this node wins over the one that a release brings of itself.
	cfg := config(t)
	cfg.Release = releaseBy(t, must(rsa.GenerateKey(rand.Reader, 2048))(t))
	write(t, cfg.Etc, map[string]string{"install.sh": script})
	if _, err := Create(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "signature") {
		t.Errorf("another's release: %v", err)
	}
}

func TestTruncatedBundle(t *testing.T) {
	cfg := config(t)
	must(Create(t.Context(), cfg))(t)
	raw := must(os.ReadFile(cfg.Out))(t)
	for _, n := range []int{0, 100, 512, len(raw) / 2, len(raw) - 1024 - 512} {
		file := filepath.Join(t.TempDir(), "short.tar")
		if err := os.WriteFile(file, raw[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(file); err == nil {
			t.Errorf("the first %d of %d bytes pass for a bundle", n, len(raw))
		}
	}
	i := bytes.Index(raw, []byte("as is"))
	raw[i] = 'A'
	if err := os.WriteFile(cfg.Out, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(cfg.Out); err == nil || !strings.Contains(err.Error(), "LICENSES.txt is damaged") {
		t.Error(err)
	}
	if _, err := Verify(t.TempDir()); err == nil {
		t.Error("an empty folder passes for a bundle")
	}
}

func TestArchiveNames(t *testing.T) {
	for in, want := range map[string]string{"registry.lan:5000/app:1": "registry.lan_5000_app_1.tar.zst",
		"app.tar.gz": "app.tar.zst", "app.tgz": "app.tar.zst", "x.tar.zst": "x.tar.zst",
		".hidden.tar": "i.hidden.tar.zst", "ä": "i_.tar.zst", "a@sha256:b": "a_sha256_b.tar.zst",
		strings.Repeat("a", 500): strings.Repeat("a", 180) + ".tar.zst"} {
		got := archiveName(in)
		if got != want || !goodName("images/"+got) {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func archive(t testing.TB, files ...*tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range files {
		h.Mode = 0o600
		if h.Typeflag == tar.TypeReg {
			h.Size = 2
		}
		err := w.WriteHeader(h)
		if err == nil && h.Size > 0 {
			_, err = w.Write([]byte("ok"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, &tar.Header{Name: "a/b", Typeflag: tar.TypeReg},
		&tar.Header{Name: "../../c", Typeflag: tar.TypeReg}))
	f.Add(archive(f, &tar.Header{Name: "x/images/b", Typeflag: tar.TypeReg},
		&tar.Header{Name: "x/images/../../../c", Typeflag: tar.TypeReg}))
	f.Add(archive(f, &tar.Header{Name: "images", Typeflag: tar.TypeReg},
		&tar.Header{Name: "images/c", Typeflag: tar.TypeReg}))
	f.Add(archive(f, &tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_ = unpack(bytes.NewReader(raw), dir)
		if all, _ := os.ReadDir(parent); len(all) != 1 {
			t.Errorf("outside of its folder: %v", all)
		}
		_, _ = verifyTar(bytes.NewReader(raw))
	})
}

func FuzzParseSums(f *testing.F) {
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	f.Add([]byte(sum + "  images/a.tar.zst\n" + sum + "  SHA256SUMS\n"))
	f.Add([]byte(sum + "  ../x\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseSums(raw)
		if err != nil {
			return
		}
		if list.compare(list) != nil {
			return // names that no bundle has
		}
		for name := range list {
			if !filepath.IsLocal(name) || slices.ContainsFunc([]byte(name), func(b byte) bool { return b <= ' ' }) {
				t.Errorf("%q passes for a name", name)
			}
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if k, err := parseKey(raw); err == nil && k == nil {
			t.Error("neither key nor error")
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(pod + "---\n"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _ = checkManifest(raw) })
}

func TestABundleOfDataNeedsNoRelease(t *testing.T) {
	cfg := config(t)
	in := t.TempDir()
	write(t, in, map[string]string{"pod.yaml": pod})
	cfg.Release, cfg.Programs, cfg.Manifests = "", false, []string{filepath.Join(in, "pod.yaml")}
	cfg.Archives = []string{image(t, filepath.Join(in, "app.tar"), "registry.test/app:1", "amd64")}
	made := must(Create(t.Context(), cfg))(t)
	if got := must(Verify(cfg.Out))(t); fmt.Sprint(got) != fmt.Sprint(made.Contents) || len(got.Programs) > 0 {
		t.Errorf("verified %v", got)
	}
	dir, remove, err := Folder(t.Context(), cfg.Out)
	if err != nil {
		t.Fatal(err)
	}
	defer remove()
	if HasRelease(dir) {
		t.Error("it has a release")
	}
	d := layout.Dirs{Data: filepath.Join(t.TempDir(), "data"), Run: "/run/x"}
	if err := os.MkdirAll(d.Server(), 0o700); err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(d.Images(), "app.tar.zst"), filepath.Join(d.Manifests(), "pod.yaml")}
	if got := must(Place(dir, d))(t); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("placed %v", got)
	}
	if got := must(os.ReadFile(want[1]))(t); string(got) != pod {
		t.Errorf("%s", got)
	}
	if got := must(Place(dir, d))(t); len(got) != 0 {
		t.Errorf("placed again: %v", got)
	}
	// With programs, it is said that one is needed.
	cfg.Programs = true
	if _, err := Create(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "--release") {
		t.Errorf("got %v", err)
	}
}
