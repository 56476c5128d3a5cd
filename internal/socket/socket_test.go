package socket

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestListen: a socket is for root alone from its first moment, takes the place of an old one, and survives the end of
// the listener before it.
func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	first, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	go func() {
		if c, err := second.Accept(); err == nil {
			_ = c.Close()
		}
	}()
	if err := Probe(t.Context(), path); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 || st.Mode()&fs.ModeSocket == 0 {
		t.Errorf("%v, %v", st, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("the folder holds %v, %v", left, err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if err := Probe(t.Context(), path); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens, but: %v", err)
	}
}

// TestPathsThatAreTooLong measures the socket's path, or the temporary one where its name is shorter than that: the
// longest paths work, and one byte more is an error before anything is bound.
func TestPathsThatAreTooLong(t *testing.T) {
	temporary := len("/.s/s") + len("4294967295")
	for name, after := range map[string]int{"/datastore-of-all.sock": len("/datastore-of-all.sock"),
		"/a.sock": temporary} {
		base := t.TempDir()
		dir := filepath.Join(base, strings.Repeat("d", maxPath-len(base)-len("/")-after))
		for _, d := range []string{dir, dir + "x"} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Listen(t.Context(), dir+name)
		if err != nil {
			t.Fatalf("%d bytes: %v", len(dir+name), err)
		}
		_ = l.Close()
		_, err = Listen(t.Context(), dir+"x"+name)
		if err == nil || !strings.Contains(err.Error(), "choose a shorter --run-dir") {
			t.Errorf("%d bytes: %v", len(dir+"x"+name), err)
		}
	}
}
