package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/listing"
)

// Bounds of an archive, and the prefix of temporary folders.
const (
	maxFiles = 5000
	maxBytes = 64 << 30
	unpacked = "umiak-unpacked-"
)

// Folder returns the folder with the files of a release or a bundle, given the folder or an archive, which it unpacks.
// remove removes what was unpacked. Unpacking ends with ctx.
func Folder(ctx context.Context, from string) (dir string, remove func(), err error) {
	if from, err = filepath.Abs(from); err != nil {
		return "", nil, err
	}
	info, err := os.Stat(from)
	if err != nil {
		return "", nil, err
	}
	if info.IsDir() {
		return from, func() {}, nil
	}
	removeAbandoned(tempDir())
	if dir, err = os.MkdirTemp(tempDir(), fmt.Sprintf("%s%d-", unpacked, os.Getpid())); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	f, err := os.Open(from)
	if err == nil {
		err = errors.Join(unpack(interruptible{ctx, f}, dir), f.Close())
	}
	if err != nil {
		remove()
		return "", nil, err
	}
	return dir, remove, nil
}

// interruptible is a Reader that fails once its context has ended.
type interruptible struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r interruptible) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// tempDir returns a folder for large temporary files: on many machines /tmp is in memory.
func tempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	if info, err := os.Stat("/var/tmp"); err == nil && info.IsDir() {
		return "/var/tmp"
	}
	return os.TempDir()
}

// removeAbandoned removes the folders of processes that ended without removing them, by a power failure or a kill.
func removeAbandoned(dir string) {
	all, _ := listing.Match(dir, unpacked+"*") // best effort
	for _, d := range all {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(d), unpacked), "-")
		if n, err := strconv.Atoi(pid); err == nil && n > 0 && errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			_ = os.RemoveAll(d)
		}
	}
}

// inBundle returns the name in a bundle or release of a file in an archive, "" if the name is invalid.
func inBundle(name string) string {
	parts := strings.Split(path.Clean("/"+name), "/")[1:]
	for i, p := range parts[:len(parts)-1] {
		if slices.Contains(folders, p) {
			return path.Join(parts[i:]...)
		}
	}
	return parts[len(parts)-1]
}

// unpack writes the files of an archive to a folder.
func unpack(r io.Reader, dir string) error {
	return each(r, func(name string, r io.Reader) error {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	})
}
