// Package instance ensures that one process at a time uses a data directory, and finds the nodes of this machine.
//
// Commands, process.Claim and the host checks call it. It imports internal/layout, filelock and atomicfile.
package instance

import (
	"errors"
	"fmt"
	"os"

	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/layout"
)

// ErrTaken means that another process has locked the data directory.
var ErrTaken = errors.New("another umiak is using this data directory")

// Acquire creates the two directories and locks the data directory until release is called or the process ends,
// however it ends. A second process gets ErrTaken with the process ID of the first, and nothing is created in a data
// directory of k3s, for which the error is ErrK3s.
func Acquire(d layout.Dirs) (release func(), err error) {
	if err := refuseK3s(d.Data); err != nil {
		return nil, err
	}
	for dir, mode := range map[string]os.FileMode{d.Data: 0o755, d.Run: 0o711} {
		if err := os.MkdirAll(dir, mode); err != nil {
			return nil, fmt.Errorf("create directory: %w", err)
		}
	}
	release, err = filelock.Try(d.Lock())
	if errors.Is(err, filelock.ErrHeld) {
		return nil, fmt.Errorf("%w: %w; stop it, or set another data-dir", ErrTaken, err)
	}
	return release, err
}

// Running reports whether a process has locked the data directory.
func Running(d layout.Dirs) bool { return filelock.Held(d.Lock()) }
