package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func tarOf(t testing.TB, name, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	_, err := io.WriteString(w, text)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdOf(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// bzipped is tarOf(t, "index.json", "{}") after bzip2, which the standard library only reads.
const bzipped = "QlpoOTFBWSZTWYu9utsAADbbkMmAQAF1hAEAZjGeSgQAAAggAFRnpMJgIwA0IMU0jQHqGgAH0tU0YkesCQ/FDoPbXIkIFeQvRLIEzhNENDr5kTvP2AxqWecDgdFHXOMAPxdyRThQkIu9uts="

func TestPlainFindsOutWhatItIs(t *testing.T) {
	raw := tarOf(t, "index.json", "{}")
	long := tarOf(t, strings.Repeat("a/", 120)+"x", "{}") // the name goes on in another block
	bzip, err := base64.StdEncoding.DecodeString(bzipped)
	if err != nil {
		t.Fatal(err)
	}
	skippable := append([]byte{0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'}, zstdOf(t, raw)...)
	for name, c := range map[string]struct{ in, want []byte }{
		"tar": {raw, raw}, "long name": {long, long}, "gzip": {gzipOf(t, raw), raw}, "bzip2": {bzip, raw},
		"zstd": {zstdOf(t, raw), raw}, "zstd with a frame to skip": {skippable, raw},
	} {
		r, err := plain(bytes.NewReader(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, c := range map[string]struct {
		in   []byte
		says string
	}{
		"empty": {nil, "empty"}, "text": {[]byte("hello"), "accepted are tar"},
		"BZhistory": {[]byte("BZh is a name"), "accepted are tar"},
		"xz":        {[]byte{0xfd, '7', 'z', 'X', 'Z', 0, 0, 4}, "xz is not supported"},
		"lz4":       {[]byte{0x04, 0x22, 0x4d, 0x18, 0x64}, "unpack it with `lz4 -d`"},
		"zip":       {[]byte("PK\x03\x04..."), "zip is not supported"},
		"lzma":      {[]byte{0x5d, 0, 0, 0x80, 0}, "lzma is not supported"},
	} {
		if _, err := plain(bytes.NewReader(c.in)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// window is a zstd frame's beginning that asks for a window of 256 MiB, as `zstd --long=28` makes it, with one raw
// block.
func TestALongWindowIsRefusedWithWhatToDo(t *testing.T) {
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 18 << 3, 0x01 | 3<<3, 0, 0, 'a', 'b', 'c'}
	r, err := plain(bytes.NewReader(frame))
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if err == nil {
		t.Fatal("it was read")
	}
	if text := describeDamage(err).Error(); !strings.Contains(text, "--long=27") || !strings.Contains(text, "128 MiB") {
		t.Errorf("got %s", text)
	}
}

func FuzzPlain(f *testing.F) {
	raw := tarOf(f, "index.json", "{}")
	for _, b := range [][]byte{raw, gzipOf(f, raw), zstdOf(f, raw), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := plain(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<20))
	})
}

func TestNamesOfArchives(t *testing.T) {
	for name, want := range map[string]bool{
		"a.tar": true, "a.tar.gz": true, "a.tgz": true, "a.tar.zst": true, "a.tzst": true, "a.TAR": true,
		"A.Tar.GZ": true, "a.oci": true,
		"a.tar.bz2": true, "a.tar.xz": true, "a.tar.lz4": true, "a.txz": true,
		"a": false, ".tar": false, ".a.tar": false, "a.tar.part": false, "a.zip": false, "a.tar.gz.sha256": false,
	} {
		if isArchive(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

func TestFullName(t *testing.T) {
	for in, want := range map[string]string{
		"latest": "", "v1.2": "", "localhost/x:1": "localhost/x:1", "box:1": "docker.io/library/box:1",
		"quay.io/a/b": "quay.io/a/b:latest", "a//b:1": "", "": "",
	} {
		if got := fullName(in); got != want {
			t.Errorf("%q is %q", in, got)
		}
	}
}

func TestWhatIsOverlooked(t *testing.T) {
	dir := t.TempDir()
	raw := tarOf(t, "index.json", "{}")
	for name, c := range map[string]struct {
		in   []byte
		says string
	}{
		"image": {raw, "end in .tar"}, "image.gz": {gzipOf(t, raw), "end in .tar"},
		"x.zip":  {[]byte("PK\x03\x04"), "zip is not supported"},
		"README": {[]byte("read me"), ""}, "a.tar.sha256": {[]byte("00ff  a.tar"), ""}, "empty": {nil, ""},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.in, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := misnamed(path); (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%s: %q", name, got)
		}
	}
	layout := filepath.Join(dir, "layout")
	if err := errors.Join(os.Mkdir(layout, 0o700),
		os.WriteFile(filepath.Join(layout, "oci-layout"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := misnamed(layout); !strings.Contains(got, "tar -C "+layout) {
		t.Errorf("an OCI layout: %q", got)
	}
}

func TestStateSurvivesDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	want := map[string]record{"a.tar": {identity: identity{Size: 1, Inode: 2},
		imported: imported{Images: map[string]string{"x": "sha256:0"}, SHA256: "ff"}}}
	if err := saveState(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := loadState(path)
	if err != nil || got["a.tar"].Inode != 2 || got["a.tar"].Images["x"] != "sha256:0" || got["a.tar"].SHA256 != "ff" {
		t.Fatal(got, err)
	}
	for _, text := range []string{"", "{", "[]", `{"a.tar": 1}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := loadState(path); err != nil || got == nil || len(got) != 0 {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestIdentityChangesWithTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, before, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	// Same size, same time: cp -p over it.
	st, _ := os.Stat(path)
	if err := errors.Join(os.WriteFile(path, []byte("two"), 0o600),
		os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
		t.Fatal(err)
	}
	f, after, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	if before == after {
		t.Error("the change is not seen")
	}
	if _, _, err := open(t.TempDir()); err == nil {
		t.Error("a folder was opened")
	}
}

func TestQueueRunsANameOnceAtATime(t *testing.T) {
	q := newQueue()
	q.add("a")
	q.add("a")
	name, _ := q.next()
	q.add(name) // changed while it is worked on
	q.add("b")
	var got []string
	var mu sync.Mutex
	var wg sync.WaitGroup
	wg.Go(func() {
		for n, ok := q.next(); ok; n, ok = q.next() {
			mu.Lock()
			got = append(got, n)
			mu.Unlock()
			q.done(n)
			if n == "a" {
				q.close()
			}
		}
	})
	q.done(name)
	wg.Wait()
	if !slices.Equal(got, []string{"b", "a"}) {
		t.Fatalf("got %v", got)
	}
}

func TestRepositoryOf(t *testing.T) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for in, want := range map[string]string{
		"docker.io/library/nginx:1": "docker.io/library/nginx",
		"r:5000/a@" + sum:           "r:5000/a",
		"r:5000/a:1@" + sum:         "r:5000/a",
		"r:5000/a":                  "r:5000/a",
	} {
		if got := RepositoryOf(in); got != want || RepositoryOf(got) != got {
			t.Errorf("%s: %s", in, got)
		}
	}
}
