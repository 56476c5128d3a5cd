package listing

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMatchTakesTheFoldersNameAsItIsAndSaysWhenItCannotBeRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*c")
	if got, err := Match(dir, "*.x"); err != nil || len(got) > 0 {
		t.Errorf("no folder: %v, %v", got, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"2.x", "1.x", ".3.x", "4.y"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Match(dir, "[0-9].x"); err != nil || !slices.Equal(got, []string{filepath.Join(dir, "1.x"),
		filepath.Join(dir, "2.x")}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "5.d", "6.x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := Match(dir, "*", "*.x"); err != nil || !slices.Equal(got,
		[]string{filepath.Join(dir, "5.d", "6.x")}) {
		t.Errorf("two levels: %v, %v", got, err)
	}
	if _, err := Match(filepath.Join(dir, "4.y"), "*"); err == nil {
		t.Error("a file was listed as a folder")
	}
	if _, err := Match(dir, "["); err == nil {
		t.Error("a bad pattern matched")
	}
}
