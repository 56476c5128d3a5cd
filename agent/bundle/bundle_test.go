package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// makeArchive packs files as scripts/build does: a name that starts with "=" links to the file before.
func makeArchive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, h := range headers {
		body := h.Uname // the content, for want of another field
		h.Uname = ""
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func testArchive(t testing.TB, text string) []byte {
	return makeArchive(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "cni/"},
		tar.Header{Typeflag: tar.TypeReg, Name: "cni/bridge", Uname: "bridge " + text},
		tar.Header{Typeflag: tar.TypeLink, Name: "cni/host-local", Linkname: "cni/bridge"},
		tar.Header{Typeflag: tar.TypeReg, Name: "runc", Uname: "runc " + text})
}

func testStore(t *testing.T) store {
	return store{dir: filepath.Join(t.TempDir(), "bundle"), bootID: "boot-1", inUse: func(string) (bool, error) { return false, nil }}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstallTwiceAndUpgrade(t *testing.T) {
	s := testStore(t)
	one, two := testArchive(t, "one"), testArchive(t, "two")
	if err := s.install(t.Context(), "one", one); err != nil {
		t.Fatal(err)
	}
	runc := filepath.Join(s.dir, current, "runc")
	before, err := os.Stat(runc)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Fatal(before, err)
	}
	if got := read(t, filepath.Join(s.dir, current, "cni/host-local")); got != "bridge one" {
		t.Fatalf("got %q", got)
	}
	// The second time the archive is not looked at.
	if err := s.install(t.Context(), "one", nil); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(runc); !os.SameFile(before, after) {
		t.Fatal("unpacked again")
	}
	s.inUse = func(dir string) (bool, error) { return filepath.Base(dir) == "one", nil }
	if err := s.install(t.Context(), "two", two); err != nil {
		t.Fatal(err)
	}
	if got := read(t, runc); got != "runc two" {
		t.Fatalf("got %q", got)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "one")); err != nil {
		t.Fatal("a bundle in use was removed")
	}
	s.inUse = func(string) (bool, error) { return false, nil }
	if err := os.Mkdir(filepath.Join(s.dir, tempPrefix+"left"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.install(t.Context(), "two", nil); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(s.dir)
	if len(entries) != 2 {
		t.Fatalf("left: %v", entries)
	}
}

// A power cut can leave any of these; each is put right.
func TestDamageIsRepaired(t *testing.T) {
	archive := testArchive(t, "good")
	for name, damage := range map[string]func(home string) error{
		"truncated":      func(h string) error { return os.Truncate(filepath.Join(h, "runc"), 3) },
		"missing":        func(h string) error { return os.Remove(filepath.Join(h, "cni/bridge")) },
		"not executable": func(h string) error { return os.Chmod(filepath.Join(h, "runc"), 0o644) },
		"empty manifest": func(h string) error { return os.Truncate(filepath.Join(h, manifestName), 0) },
		"no manifest":    func(h string) error { return os.Remove(filepath.Join(h, manifestName)) },
		"link missing":   func(h string) error { return os.Remove(filepath.Join(filepath.Dir(h), current)) },
		"link to elsewhere": func(h string) error {
			return errors.Join(os.Remove(filepath.Join(filepath.Dir(h), current)), os.Symlink("/nowhere", filepath.Join(filepath.Dir(h), current)))
		},
		"zeros, found after a reboot": func(h string) error {
			return os.WriteFile(filepath.Join(h, "runc"), make([]byte, len("runc good")), 0o755)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			if err := s.install(t.Context(), "id", archive); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(s.dir, "id")); err != nil {
				t.Fatal(err)
			}
			s.bootID = "boot-2"
			if err := s.install(t.Context(), "id", archive); err != nil {
				t.Fatal(err)
			}
			home := filepath.Join(s.dir, current)
			if read(t, home+"/runc") != "runc good" || read(t, home+"/cni/bridge") != "bridge good" {
				t.Fatal("not repaired")
			}
			if st, _ := os.Stat(home + "/runc"); st.Mode().Perm() != 0o755 {
				t.Fatal(st.Mode())
			}
		})
	}
}

func TestBadArchivesAreRefusedAndLeaveNothing(t *testing.T) {
	for name, archive := range map[string][]byte{
		"empty":      nil,
		"no zstd":    []byte("hello"),
		"truncated":  testArchive(t, strings.Repeat("x", 100))[:60],
		"escape":     makeArchive(t, tar.Header{Typeflag: tar.TypeReg, Name: "../out", Uname: "x"}),
		"absolute":   makeArchive(t, tar.Header{Typeflag: tar.TypeReg, Name: "/tmp/out", Uname: "x"}),
		"symlink":    makeArchive(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "runc", Linkname: "/bin/sh"}),
		"stray link": makeArchive(t, tar.Header{Typeflag: tar.TypeLink, Name: "runc", Linkname: "../../etc/passwd"}),
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			if err := s.install(t.Context(), "id", archive); err == nil && name != "empty" {
				t.Fatal("accepted")
			}
			if name == "empty" {
				return // an empty stream is an empty archive; it never passes for whole
			}
			if entries, _ := os.ReadDir(s.dir); len(entries) != 0 {
				t.Fatalf("left: %v", entries)
			}
		})
	}
}

func TestInstallEndsWithItsContext(t *testing.T) {
	s := testStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.install(ctx, "id", testArchive(t, "x")); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestInUseSeesARunningProgram(t *testing.T) {
	dir := t.TempDir()
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(dir+"/shim", sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	if used, err := inUse(dir); err != nil || used {
		t.Fatal(used, err)
	}
	cmd := exec.Command(dir+"/shim", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	used, err := inUse(dir)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil || !used {
		t.Fatal(used, err)
	}
}

func TestLookupNamesAllThatIsMissing(t *testing.T) {
	dir := t.TempDir()
	has := map[string]string{}
	find := func(name string) (string, error) {
		if p, ok := has[name]; ok {
			return p, nil
		}
		return "", exec.ErrNotFound
	}
	_, err := lookup(find, []string{dir})
	for _, name := range []string{runcName, shimName, pauseName, "bridge"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
	maps.Copy(has, map[string]string{runcName: "/usr/bin/runc", shimName: "/usr/bin/shim", pauseName: "/x/pause"})
	for _, p := range plugins {
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := lookup(find, []string{"/nowhere", dir})
	if want := (Programs{Runc: "/usr/bin/runc", Shim: "/usr/bin/shim", Pause: "/x/pause", CNIDir: dir}); err != nil || got != want {
		t.Fatalf("got %v, %v", got, err)
	}
}

// TestEmbedded runs with the real bundle: go test -tags …,bundle.
func TestEmbedded(t *testing.T) {
	if !Embedded() {
		t.Skip("built without the tag bundle")
	}
	dir := t.TempDir()
	begun := time.Now()
	p, err := Unpack(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	first := time.Since(begun)
	begun = time.Now()
	if _, err := Unpack(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("unpacked %d bytes in %s, the second time %s", len(archive), first, time.Since(begun))
	if missing := firstMissing(p.CNIDir); missing != "" {
		t.Errorf("no plugin %s", missing)
	}
	for _, args := range [][]string{{p.Runc, "--version"}, {p.Shim, "-v"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	names, _ := filepath.Glob(p.CNIDir + "/*")
	slices.Sort(names)
	for _, n := range names {
		cmd := exec.Command(n)
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "supportedVersions") {
			t.Errorf("%s: %v: %s", n, err, out)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(testArchive(f, "seed"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		inside := filepath.Join(dir, "in")
		if err := os.Mkdir(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = extract(t.Context(), inside, b)
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Fatalf("wrote outside: %v", entries)
		}
	})
}
