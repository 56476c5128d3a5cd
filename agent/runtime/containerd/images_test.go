package containerd_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/images"
	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// capture returns what a function writes to the standard output.
func capture(t *testing.T, f func() error) (string, error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stdout
	os.Stdout = w
	out := make(chan string)
	go func() { b, _ := io.ReadAll(r); out <- string(b) }()
	err = f()
	os.Stdout = old
	_ = w.Close()
	return <-out, err
}

func gzipped(t *testing.T, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// multiArch is an OCI archive of one image for this machine and one for another.
func multiArch(t *testing.T, file string) {
	t.Helper()
	foreign := must(mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "s390x"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: busybox(t),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
		mutate.IndexAddendum{Add: foreign,
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
	dir := t.TempDir()
	p := must(layout.Write(dir, empty.Index))
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{"io.containerd.image.name": "quay.io/test/multi:1"})); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", dir, "-cf", file, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestImageCommands(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n.start()
	c := n.client()
	sock := n.cfg.Dirs.ContainerdSocket()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }

	var whole bytes.Buffer
	if err := tarball.Write(must(name.NewTag("box:1")), busybox(t), &whole); err != nil {
		t.Fatal(err)
	}
	zipped := gzipped(t, whole.Bytes())
	flipped := bytes.Clone(zipped)
	flipped[len(flipped)/2] ^= 0xff
	bad := map[string]string{ // and what the error must say
		"text.tar": "not a tar archive", "empty.tar": "empty", "cut.tar": "cut short", "cut.tar.gz": "cut short",
		"flipped.tar.gz": "", "noimage.tar": "contains no image", "missing.tar": "no such file",
	}
	for name, content := range map[string][]byte{
		"text.tar": []byte(strings.Repeat("hello", 200)), "empty.tar": nil, "cut.tar": whole.Bytes()[:whole.Len()/2],
		"cut.tar.gz": zipped[:len(zipped)/2], "flipped.tar.gz": flipped, "good.tar.gz": zipped,
	} {
		if err := os.WriteFile(file(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("tar", "-C", "/etc", "-cf", file("noimage.tar"),
		"hostname").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	multiArch(t, file("multi.tar"))

	var paths []string
	for name := range bad {
		paths = append(paths, file(name))
	}
	var progress bytes.Buffer
	err := images.Import(ctx, sock, append(paths, file("good.tar.gz"), file("multi.tar")), images.ImportOptions{},
		&progress)
	if err == nil {
		t.Fatal("broken archives were accepted")
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		for name, want := range bad {
			if strings.Contains(line, file(name)+":") {
				if !strings.Contains(line, want) {
					t.Errorf("%s: %s", name, line)
				}
				delete(bad, name)
			}
		}
	}
	if len(bad) > 0 {
		t.Errorf("not named: %v in %v", bad, err)
	}
	t.Log(progress.String())
	for _, image := range []string{testImage, "quay.io/test/multi:1"} {
		eventually.True(t, image, func() bool { i := c.hasImage(ctx, image); return i != nil && i.Pinned })
	}

	var out bytes.Buffer
	if err := images.List(ctx, sock, "", &out); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	out.Reset()
	var list []images.Image
	if err := images.List(ctx, sock, "json", &out); err != nil || json.Unmarshal(out.Bytes(), &list) != nil {
		t.Fatal(err, out.String())
	}
	if len(list) != 3 || list[0].Name != testImage || !list[0].Pinned || list[0].Size == 0 {
		t.Errorf("list: %+v", list)
	}

	// Out, away, and in again.
	for _, suffix := range []string{".tar", ".tar.gz", ".tar.zst"} {
		archive := file("export" + suffix)
		if err := images.Export(ctx, sock, []string{"box:1", "quay.io/test/multi:1"}, archive, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := capture(t, func() error {
			return containerd.Ctr(ctx, []string{"images", "rm", "--sync", testImage, "quay.io/test/multi:1"}, sock)
		}); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the images are gone", func() bool {
			return c.hasImage(ctx, testImage) == nil && c.hasImage(ctx, "quay.io/test/multi:1") == nil
		})
		if err := images.Import(ctx, sock, []string{archive}, images.ImportOptions{}, io.Discard); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the images are back", func() bool {
			return c.hasImage(ctx, testImage) != nil && c.hasImage(ctx, "quay.io/test/multi:1") != nil
		})
	}
	if err := images.Export(ctx, sock, []string{"none:1"}, file("none.tar"), nil); err == nil {
		t.Error("exported what is not there")
	}
	if left, _ := filepath.Glob(dir + "/.umiak*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}

	// ctr neither ends the process nor goes to another containerd.
	t.Setenv("CONTAINERD_ADDRESS", "/nowhere")
	text, err := capture(t, func() error { return containerd.Ctr(ctx, []string{"images", "ls", "-q"}, sock) })
	if err != nil || !strings.Contains(text, testImage+"\n") {
		t.Errorf("ctr: %v: %s", err, text)
	}
	if _, err := capture(t, func() error {
		return containerd.Ctr(ctx, []string{"images", "export"},
			sock)
	}); err == nil {
		t.Error("ctr without arguments succeeds")
	}

	// What the folder holds comes back at the next start when somebody has removed it.
	n.putArchive("box.tar")
	if err := os.WriteFile(filepath.Join(n.cfg.Dirs.Images(), "broken.tar.gz"), zipped[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	logged := func(s string) func() bool {
		return func() bool { b, _ := os.ReadFile(n.log.Name()); return strings.Contains(string(b), s) }
	}
	eventually.True(t, "the archive is imported", logged(`msg="images imported" file=`+n.cfg.Dirs.Images()+"/box.tar"))
	eventually.True(t, "the broken one is reported", logged(`msg="image archive not imported" file=`+
		n.cfg.Dirs.Images()+"/broken.tar.gz"))
	if _, err := capture(t, func() error {
		return containerd.Ctr(ctx, []string{"images", "rm", "--sync", testImage},
			sock)
	}); err != nil {
		t.Fatal(err)
	}
	n.stop(syscall.SIGTERM)
	n.start()
	eventually.True(t, "the image is back after a start", func() bool { return c.hasImage(ctx, testImage) != nil })
}
