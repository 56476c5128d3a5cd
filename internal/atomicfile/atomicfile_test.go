package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

func TestWriteReplacesAndLeavesNothingBeside(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "key")
	for _, s := range []string{"one", "two"} {
		if err := atomicfile.Write(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != s {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	st, _ := os.Stat(p)
	if st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v", st.Mode())
	}
	if l, _ := os.ReadDir(dir); len(l) != 1 {
		t.Fatalf("left behind: %v", l)
	}
	if err := atomicfile.Write(dir, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a folder")
	}
	if err := atomicfile.Write(filepath.Join(dir, "no", "file"), nil, 0o600); err == nil {
		t.Fatal("wrote into a folder that is not there")
	}
}

func TestWriteIfChangedWritesWhatDiffers(t *testing.T) {
	p := filepath.Join(t.TempDir(), "key")
	for _, c := range []struct {
		data string
		mode os.FileMode
		want bool
	}{{"one", 0o600, true}, {"one", 0o600, false}, {"two", 0o600, true}, {"two", 0o644, true}, {"two", 0o644, false}} {
		changed, err := atomicfile.WriteIfChanged(p, []byte(c.data), c.mode)
		if err != nil || changed != c.want {
			t.Errorf("%q with mode %v: changed %v, %v, want %v", c.data, c.mode, changed, err, c.want)
		}
	}
}
