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

// exportFile is a file that gets its name when it is complete. Until then it has no name where the file system supports
// O_TMPFILE, so nothing remains however the program ends. Elsewhere it has a temporary name and a lock, and the next
// output in the same folder removes what an ended program left.
type exportFile struct {
	*os.File
	name string
	temp string // its temporary name; "" if it has none
}

// tempPrefix begins the temporary names.
const tempPrefix = ".umiak-export-"

// create opens a new export file.
func create(name string) (*exportFile, error) {
	dir := filepath.Dir(name)
	removeLeftovers(dir)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return &exportFile{File: os.NewFile(uintptr(fd), name), name: name}, nil //nolint:gosec // a descriptor
	}
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return nil, err
	}
	if err := filelock.TryFile(f); err != nil {
		return nil, errors.Join(os.NewSyscallError("flock", err), f.Close(), os.Remove(f.Name()))
	}
	return &exportFile{File: f, name: name, temp: f.Name()}, nil
}

// removeLeftovers removes temporary files that no process writes.
func removeLeftovers(dir string) {
	all, _ := listing.Match(dir, tempPrefix+"*") // best effort
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

// commit gives the file its name and replaces an existing file of that name.
func (o *exportFile) commit() error {
	if err := errors.Join(o.Chmod(0o644), o.Sync()); err != nil {
		return err
	}
	from := o.temp
	if from == "" {
		// linkat does not replace an existing file.
		from = filepath.Join(filepath.Dir(o.name), tempPrefix+strconv.Itoa(os.Getpid()))
		if err := os.Remove(from); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.Fd()), unix.AT_FDCWD, from,
			unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: o.name, New: from, Err: err}
		}
		o.temp = from
	}
	if err := os.Rename(from, o.name); err != nil {
		return err
	}
	o.temp = ""
	return nil
}

// close closes the file. Without commit, it removes what was written.
func (o *exportFile) close() error {
	var err error
	if o.temp != "" {
		err = os.Remove(o.temp)
	}
	return errors.Join(err, o.Close())
}
