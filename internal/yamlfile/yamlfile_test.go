package yamlfile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"20.yaml", "10.yml", "30.YAML", "40.conf", "50.json", "README", "60.yaml~",
		"70.yaml.bak", "._20.yaml", ".hidden.conf"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A lock of Emacs is a link without a target.
	if err := os.Symlink("me@machine.1234:5678", filepath.Join(dir, ".#20.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "80.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	files, over, err := Folder(dir, ".yaml", ".yml")
	if err != nil {
		t.Fatal(err)
	}
	base := func(all []string) (out []string) {
		for _, p := range all {
			out = append(out, filepath.Base(p))
		}
		return out
	}
	if got := base(files); !slices.Equal(got, []string{"10.yml", "20.yaml"}) {
		t.Errorf("read: %q", got)
	}
	if got := base(over); !slices.Equal(got, []string{"30.YAML", "40.conf", "50.json"}) {
		t.Errorf("passed over: %q", got)
	}
}

func TestReadTakesRegularFilesAndWaitsForNone(t *testing.T) {
	dir := t.TempDir()
	fifo, file, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("a: b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{file, link} {
		if raw, err := Read(p); err != nil || string(raw) != "a: b" {
			t.Errorf("%s: %q, %v", p, raw, err)
		}
	}
	for _, p := range []string{fifo, dir, "/dev/null"} {
		if _, err := Read(p); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", p, err)
		}
	}
}
