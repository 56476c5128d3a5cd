package secretfiles

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// In a folder that other users can enter, which the test's own is not (0700).
	dir, err := os.MkdirTemp("/tmp", "exposed")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	file := filepath.Join(dir, "config.yaml")
	if got := File(file); got != "" {
		t.Errorf("a file that does not exist: %s", got)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir, file os.FileMode
		gid       int
		want      bool
	}{
		{0o755, 0o644, 0, true}, {0o755, 0o600, 0, false}, {0o755, 0o640, 0, false}, {0o755, 0o640, 100, true},
		{0o711, 0o604, 0, true}, {0o700, 0o644, 0, false}, {0o750, 0o640, 100, true},
	} {
		for _, err := range []error{os.Chmod(dir, c.dir), os.Chown(file, 0, c.gid), os.Chmod(file, c.file)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := File(file); (got != "") != c.want || c.want && !strings.HasSuffix(got, "chmod 600 "+file) {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
