package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/layout"
)

// HasRelease reports whether an unpacked bundle contains a release, which its install.sh can install. A bundle made
// with --no-programs on a machine that was not installed from a release contains none.
func HasRelease(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, list))
	return err == nil
}

// Place verifies an unpacked bundle without a release and copies its files to their places on this node. It returns the
// files that it has written; files that exist with the same content are skipped.
func Place(dir string, dirs layout.Dirs) ([]string, error) {
	_, err := os.Stat(dirs.Server())
	targets, err := Targets(dir, err == nil, dirs)
	if err != nil {
		return nil, err
	}
	var placed []string
	for _, t := range targets {
		sum, err := sumOfFile(t.File)
		if err != nil {
			return placed, err
		}
		if there, err := sumOfFile(t.Path); err == nil && there == sum {
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return placed, err
		}
		mode := fs.FileMode(0o644)
		if t.Path == Settings {
			mode = 0o600
		}
		if err := place(t.File, t.Path, dirs.Agent(), mode); err != nil {
			return placed, fmt.Errorf("place %s: %w", t.Path, err)
		}
		placed = append(placed, t.Path)
	}
	return placed, nil
}

// place copies a file and renames it to its name once it is complete. The temporary file is outside the folders that
// umiak watches.
func place(from, to, near string, mode fs.FileMode) (err error) {
	if to == Settings {
		near = filepath.Dir(to)
	}
	for _, d := range []string{near, filepath.Dir(to)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // opened for reading
	tmp, err := os.CreateTemp(near, ".umiak-bundle-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // fails after the rename
	_, err = io.Copy(tmp, in)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), to); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}
