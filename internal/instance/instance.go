// Package instance makes one process the owner of a data directory.
package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
)

// ErrTaken means that another process owns the directory.
var ErrTaken = errors.New("another umiak is using this data directory")

// Acquire creates the two directories and locks the data directory for this process, until release is
// called or the process ends, however it ends. A second owner gets ErrTaken with the first one's pid.
func Acquire(d layout.Dirs) (release func(), err error) {
	for dir, mode := range map[string]os.FileMode{d.Data: 0o755, d.Run: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("create directory: %w", err)
		}
	}
	release, err = Hold(d.Lock())
	if errors.Is(err, ErrHeld) {
		return nil, fmt.Errorf("%w: %w; stop it, or set another data-dir", ErrTaken, err)
	}
	return release, err
}

// Running says whether a process owns the directory.
func Running(d layout.Dirs) bool { return Held(d.Lock()) }

// ErrHeld means that another process holds a lock.
var ErrHeld = errors.New("is held by process")

// Hold takes the lock of a file, which is made, until release is called or the process ends.
func Hold(file string) (release func(), err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := os.ReadFile(file)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s %w %s", filepath.Dir(file), ErrHeld, strings.TrimSpace(string(owner)))
		}
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	// The number is for people: on a full disk, the lock holds without it.
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil && !atomicfile.NoSpace(err) {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	return func() { _ = f.Close() }, nil
}

// Held says whether a process holds the lock of a file.
func Held(file string) bool {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func writePID(f *os.File) error {
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}
