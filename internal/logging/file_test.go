package logging

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogFileIsRotated bounds what the log takes of the disk, also over a restart.
func TestLogFileIsRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	line := func(i int) string { return fmt.Sprintf("line %04d\n", i) } // 10 bytes
	for start := range 10 {
		l, err := openLogFile(path, 100)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if _, err := l.Write([]byte(line(start*5 + i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1+oldFiles {
		t.Fatal(err, entries)
	}
	var all strings.Builder
	for _, suffix := range []string{".3", ".2", ".1", ""} {
		raw, err := os.ReadFile(path + suffix)
		if err != nil || len(raw) > 100 {
			t.Fatal(err, len(raw))
		}
		all.Write(raw)
	}
	if want := line(48) + line(49); !strings.HasSuffix(all.String(), want) || !strings.HasPrefix(all.String(), line(10)) {
		t.Errorf("the files hold\n%s", all.String())
	}
}

// failing is a writer on a full disk.
type failing struct{ err error }

func (f *failing) Write(p []byte) (int, error) { return len(p), f.err }

func TestLogGoesOnWithoutItsFile(t *testing.T) {
	var main bytes.Buffer
	file := &failing{os.ErrPermission}
	w := &tee{main: &main, file: file}
	for _, line := range []string{"a\n", "b\n"} {
		if n, err := w.Write([]byte(line)); n != 2 || err != nil {
			t.Error(n, err)
		}
	}
	if s := main.String(); s != "a\nlog: write the file: permission denied\nb\n" {
		t.Errorf("%q", s)
	}
}

// TestLogFileBecomesPrivate: at high verbosity the log shows Secrets.
func TestLogFileBecomesPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openLogFile(path, 100); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
}
