package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// writers is whether a process has a file open for writing.
type writers int

const (
	unknown writers = iota // the file system or missing rights prevent an answer
	written
	unwritten
)

// errUnfit means that a file cannot be a manifest, whatever its content.
var errUnfit = errors.New("not a manifest")

// content is the result of reading a file.
type content struct {
	data    []byte
	print   string // changes whenever the file changes
	writers writers
}

// read reads a regular file. It opens without blocking, as a named pipe would.
func read(p string) (content, error) {
	return inspect(p, func(f *os.File, size int64) ([]byte, error) {
		if size > MaxBytes {
			return nil, fmt.Errorf("%w: %s is larger than %d MiB", errUnfit, p, MaxBytes>>20)
		}
		return io.ReadAll(io.LimitReader(f, MaxBytes+1))
	})
}

// look is read limited to the beginning of the file.
func look(p string) (content, error) {
	return inspect(p, func(f *os.File, _ int64) ([]byte, error) { return io.ReadAll(io.LimitReader(f, 4<<10)) })
}

func inspect(p string, read func(f *os.File, size int64) ([]byte, error)) (c content, err error) {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return c, err
	}
	defer f.Close() //nolint:errcheck // opened for reading; releases the lease
	st, err := f.Stat()
	if err != nil {
		return c, err
	}
	if !st.Mode().IsRegular() {
		return c, fmt.Errorf("%w: %s is not a regular file", errUnfit, p)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		c.print = fmt.Sprint(sys.Dev, sys.Ino, sys.Size, sys.Mtim, sys.Ctim)
	}
	// The lease is held while the file is read: opening it for writing meanwhile blocks.
	if c.writers, err = lease(f); err != nil {
		return c, err
	}
	if c.writers == written {
		return c, nil
	}
	c.data, err = read(f, st.Size())
	return c, err
}

// lease takes a read lease on the file, which the kernel refuses while a process has it open for writing (fcntl(2),
// F_SETLEASE). File systems shared with other machines cannot know.
func lease(f *os.File) (writers, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return unknown, err
	}
	var refused error
	remote := true
	err = conn.Control(func(fd uintptr) {
		var st unix.Statfs_t
		if refused = unix.Fstatfs(int(fd), &st); refused == nil {
			if remote = shared(int64(st.Type)); !remote { //nolint:unconvert // it is an int32 on 32-bit machines
				_, refused = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK)
			}
		}
	})
	switch {
	case err != nil:
		return unknown, err
	case remote:
		return unknown, nil
	case refused == nil:
		return unwritten, nil
	case errors.Is(refused, unix.EAGAIN):
		return written, nil
	}
	return unknown, nil // EACCES without CAP_LEASE, EINVAL where there are no leases
}

// shared reports whether files of a file system may be written by other machines.
func shared(magic int64) bool {
	const ( // from linux/magic.h and file system sources; package unix lacks some
		ceph, cifs, smb2, gfs2, ocfs2, lustre, virtiofs, vboxsf = 0x00c36400, 0xff534d42, 0xfe534d42, 0x01161970,
			0x7461636f, 0x0bd00bd0, 0x6a656a63, 0x786f4256
	)
	switch uint32(magic) { // some kernels extend the sign
	case unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.V9FS_MAGIC, unix.SMB_SUPER_MAGIC, unix.AFS_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC,
		ceph, cifs, smb2, gfs2, ocfs2, lustre, virtiofs, vboxsf:
		return true
	}
	return false
}
