package images

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/filelock"
	"github.com/umiak-io/umiak/internal/listing"
)

// exportFile is a file that gets its name when it is complete. Until then it has none at all where the file system can do that, so that
// nothing is left however the program ends; elsewhere it has a temporary name and a lock, and the next output in the same folder removes it.
type exportFile struct {
	*os.File
	name   string
	hidden string // its temporary name, if it has one
}

// hiddenName begins the temporary names.
const hiddenName = ".umiak-export-"

// create begins to write a file.
func create(name string) (*exportFile, error) {
	dir := filepath.Dir(name)
	removeLeftovers(dir)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &exportFile{File: os.NewFile(uintptr(fd), name), name: name}, nil //nolint:gosec // a descriptor
	}
	f, err := os.CreateTemp(dir, hiddenName)
	if err != nil {
		return nil, err
	}
	if err := filelock.TryFile(f); err != nil {
		return nil, errors.Join(os.NewSyscallError("flock", err), f.Close(), os.Remove(f.Name()))
	}
	return &exportFile{File: f, name: name, hidden: f.Name()}, nil
}

// removeLeftovers removes what nobody writes any more.
func removeLeftovers(dir string) {
	all, _ := listing.Match(dir, hiddenName+"*") // tidying up
	for _, name := range all {
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if filelock.TryFile(f) == nil {
			_ = os.Remove(name)
		}
		_ = f.Close()
	}
}

// commit gives the file its name, in place of one that has it now.
func (o *exportFile) commit() error {
	if err := errors.Join(o.Chmod(0o644), o.Sync()); err != nil {
		return err
	}
	from := o.hidden
	if from == "" {
		// A name can be given only where there is none yet.
		from = filepath.Join(filepath.Dir(o.name), hiddenName+strconv.Itoa(os.Getpid()))
		if err := os.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.Fd()), unix.AT_FDCWD, from, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: o.name, New: from, Err: err}
		}
		o.hidden = from
	}
	if err := os.Rename(from, o.name); err != nil {
		return err
	}
	o.hidden = ""
	return nil
}

// close ends writing; without commit nothing of it is left.
func (o *exportFile) close() error {
	var err error
	if o.hidden != "" {
		err = os.Remove(o.hidden)
	}
	return errors.Join(err, o.Close())
}
