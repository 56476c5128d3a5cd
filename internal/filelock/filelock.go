// Package filelock keeps processes apart by flock(2) on a file. The kernel drops a lock when its process ends, however
// that ends, so a lock never outlives a power cut or a kill.
//
// It imports internal/atomicfile and nothing else of umiak; any package may call it.
package filelock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// ErrHeld is wrapped by the error of Try when another process holds the lock. The text ends with that process's id.
var ErrHeld = errors.New("is held by process")

// Try creates the file if it is missing, locks it and writes this process's id into it. Release unlocks it.
func Try(file string) (release func(), err error) {
	f, err := open(file)
	if err != nil {
		return nil, err
	}
	if err := TryFile(f); err != nil {
		owner, _ := os.ReadFile(file)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s %w %s", filepath.Dir(file), ErrHeld, strings.TrimSpace(string(owner)))
		}
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	// The id is for people: on a full disk the lock holds without it.
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil && !atomicfile.NoSpace(err) {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	return func() { _ = f.Close() }, nil
}

// Wait creates the file if it is missing and locks it as soon as no other process has it locked. Release unlocks it.
func Wait(file string) (release func(), err error) {
	f, err := open(file)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", file, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// Held reports whether a process holds the lock of a file. A file that is missing is not locked.
func Held(file string) bool {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return errors.Is(TryFile(f), unix.EWOULDBLOCK)
}

// TryFile locks an open file until it is closed. The error is unix.EWOULDBLOCK when another process has it locked.
func TryFile(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) //nolint:gosec // a descriptor
}

func writePID(f *os.File) error {
	_, err := fmt.Fprintf(f, "%d\n", os.Getpid())
	return err
}

func open(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	return f, nil
}
