// Package powercut is a file system for tests that loses unsynced writes when its power is cut.
//
// It has two states of every file: the one that programs see, and the one on the "disk". A write changes only the
// first; fsync of the file copies its writes to the disk, fsync of the folder its names. Cut drops the rest as disks
// do: none of the unsynced writes may survive, the first ones, a random choice, or single sectors. It is one flat
// folder, served with FUSE.
//
// The program under test must run in another process than the file system: a page fault on a mapped file that its own
// process must serve would block the Go runtime.
package powercut

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	sector = 512
	maxIO  = 128 << 10 // bytes in one request
)

// Disk is the content that survives a power cut, and the file system on it.
type Disk struct {
	mu      sync.Mutex
	state   *state
	syncs   int
	nextIno uint64
}

// state is the state of the disk between two cuts. After a cut, operations on the old state return errors.
type state struct {
	d       *Disk
	dead    bool
	seen    map[string]*file
	kept    map[string]*file
	renames []nameChange // not yet synced
}

type nameChange struct {
	name string
	file *file // nil: removed
	from string
}

type file struct {
	ino        uint64
	seen, kept []byte
	changes    []change // in seen, not in kept
}

type change struct {
	off  int64
	data []byte
	size int64 // a truncation, where data is nil
}

func (c change) apply(b []byte) []byte {
	if c.data == nil {
		return resize(b, c.size)
	}
	if end := c.off + int64(len(c.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[c.off:], c.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// New returns an empty disk.
func New() *Disk {
	d := &Disk{nextIno: 1}
	d.state = &state{d: d, seen: map[string]*file{}, kept: map[string]*file{}}
	return d
}

// Syncs returns the number of syncs of files.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// Mount is a mounted Disk.
type Mount struct {
	dir  string
	gone chan struct{}
}

// Mount mounts the disk on dir, an empty folder, in the mount namespace of the calling thread.
func (d *Disk) Mount(dir string) (*Mount, error) {
	// The library's own mount lets programs that start meanwhile inherit the descriptor: the requests of the program
	// under test would then not fail when this process is killed, and the program could not be killed.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d", fd, unix.S_IFDIR, os.Geteuid(),
		os.Getegid(), maxIO)
	if err := unix.Mount("powercut", dir, "fuse.powercut", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", dir, err), unix.Close(fd))
	}
	d.mu.Lock()
	root := &rootNode{s: d.state}
	d.mu.Unlock()
	srv, err := fs.Mount(fmt.Sprintf("/dev/fd/%d", fd), root,
		&fs.Options{MountOptions: fuse.MountOptions{MaxWrite: maxIO}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
	}
	m := &Mount{dir: dir, gone: make(chan struct{})}
	go func() {
		srv.Wait()
		close(m.gone)
	}()
	return m, nil
}

// Unmount unmounts the disk and waits until the last program that uses it has ended.
func (m *Mount) Unmount() error {
	// Detached, because mapped pages of a killed program may still be written.
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", m.dir, err)
	}
	<-m.gone
	return nil
}

// Gone returns a channel that is closed when the disk is not mounted any more, also because its mount namespace has
// ended.
func (m *Mount) Gone() <-chan struct{} { return m.gone }

// Cut cuts the power. From then on, no program can change or sync anything on the old mount; the next Mount has what
// survived. It returns the number of writes and changes of names that were not synced.
func (d *Disk) Cut(rng *rand.Rand) (unsynced int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.state
	old.dead = true
	unsynced = len(old.renames)
	for _, c := range old.renames[:rng.IntN(len(old.renames)+1)] {
		c.apply(old.kept)
	}
	next := &state{d: d, seen: map[string]*file{}, kept: map[string]*file{}}
	names := make([]string, 0, len(old.kept))
	for name := range old.kept {
		names = append(names, name)
	}
	slices.Sort(names) // so that a seed determines the result
	for _, name := range names {
		f := old.kept[name]
		unsynced += len(f.changes)
		left := remains(rng, f)
		d.nextIno++
		next.kept[name] = &file{ino: d.nextIno, seen: left, kept: slices.Clone(left)}
		next.seen[name] = next.kept[name]
	}
	d.state = next
	return unsynced
}

// remains returns the content of a file that survives.
func remains(rng *rand.Rand, f *file) []byte {
	b := slices.Clone(f.kept)
	n := len(f.changes)
	switch rng.IntN(4) {
	case 0: // no unsynced write survives
	case 1: // the first ones do
		for _, c := range f.changes[:rng.IntN(n+1)] {
			b = c.apply(b)
		}
	case 2: // a random choice does
		for _, c := range f.changes {
			if rng.IntN(2) == 0 {
				b = c.apply(b)
			}
		}
	case 3: // random sectors do
		for _, c := range f.changes {
			if c.data == nil {
				if rng.IntN(2) == 0 {
					b = c.apply(b)
				}
				continue
			}
			for off := 0; off < len(c.data); {
				end := min(off+sector-int((c.off+int64(off))%sector), len(c.data))
				if rng.IntN(2) == 0 {
					b = change{off: c.off + int64(off), data: c.data[off:end]}.apply(b)
				}
				off = end
			}
		}
	}
	return b
}

func (c nameChange) apply(m map[string]*file) {
	if c.from != "" {
		delete(m, c.from)
	}
	if c.file == nil {
		delete(m, c.name)
	} else {
		m[c.name] = c.file
	}
}

// lock locks the disk for an operation. It returns EIO after a power cut.
func (s *state) lock() (func(), syscall.Errno) {
	s.d.mu.Lock()
	if s.dead {
		s.d.mu.Unlock()
		return nil, syscall.EIO
	}
	return s.d.mu.Unlock, 0
}

func (s *state) rename(c nameChange) {
	c.apply(s.seen)
	s.renames = append(s.renames, c)
}

type rootNode struct {
	fs.Inode
	s *state
}

var (
	_ fs.NodeLookuper  = (*rootNode)(nil)
	_ fs.NodeCreater   = (*rootNode)(nil)
	_ fs.NodeUnlinker  = (*rootNode)(nil)
	_ fs.NodeRenamer   = (*rootNode)(nil)
	_ fs.NodeReaddirer = (*rootNode)(nil)
	_ fs.NodeFsyncer   = (*rootNode)(nil)
	_ fs.NodeGetattrer = (*rootNode)(nil)
)

func (r *rootNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFDIR | 0o700
	return 0
}

func (r *rootNode) node(ctx context.Context, f *file, out *fuse.EntryOut) *fs.Inode {
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(len(f.seen))
	return r.NewInode(ctx, &fileNode{s: r.s, f: f}, fs.StableAttr{Mode: syscall.S_IFREG, Ino: f.ino + 100})
}

func (r *rootNode) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return nil, errno
	}
	defer unlock()
	f, ok := r.s.seen[name]
	if !ok {
		return nil, syscall.ENOENT
	}
	return r.node(ctx, f, out), 0
}

func (r *rootNode) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle,
	uint32, syscall.Errno) {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return nil, nil, 0, errno
	}
	defer unlock()
	r.s.d.nextIno++
	f := &file{ino: r.s.d.nextIno}
	r.s.rename(nameChange{name: name, file: f})
	return r.node(ctx, f, out), nil, 0, 0
}

func (r *rootNode) Unlink(_ context.Context, name string) syscall.Errno {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return errno
	}
	defer unlock()
	if _, ok := r.s.seen[name]; !ok {
		return syscall.ENOENT
	}
	r.s.rename(nameChange{name: name})
	return 0
}

func (r *rootNode) Rename(_ context.Context, name string, _ fs.InodeEmbedder, newName string, _ uint32) syscall.Errno {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return errno
	}
	defer unlock()
	f, ok := r.s.seen[name]
	if !ok {
		return syscall.ENOENT
	}
	r.s.rename(nameChange{name: newName, file: f, from: name})
	return 0
}

func (r *rootNode) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return nil, errno
	}
	defer unlock()
	var list []fuse.DirEntry
	for name, f := range r.s.seen {
		list = append(list, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: f.ino + 100})
	}
	return fs.NewListDirStream(list), 0
}

// Fsync copies the names in the folder to the disk.
func (r *rootNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	unlock, errno := r.s.lock()
	if errno != 0 {
		return errno
	}
	defer unlock()
	for _, c := range r.s.renames {
		c.apply(r.s.kept)
	}
	r.s.renames = nil
	return 0
}

type fileNode struct {
	fs.Inode
	s *state
	f *file
}

var (
	_ fs.NodeOpener    = (*fileNode)(nil)
	_ fs.NodeReader    = (*fileNode)(nil)
	_ fs.NodeWriter    = (*fileNode)(nil)
	_ fs.NodeFsyncer   = (*fileNode)(nil)
	_ fs.NodeGetattrer = (*fileNode)(nil)
	_ fs.NodeSetattrer = (*fileNode)(nil)
)

func (n *fileNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, 0, 0
}

func (n *fileNode) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	unlock, errno := n.s.lock()
	if errno != 0 {
		return nil, errno
	}
	defer unlock()
	got := 0
	if off < int64(len(n.f.seen)) {
		got = copy(dest, n.f.seen[off:])
	}
	return fuse.ReadResultData(dest[:got]), 0
}

func (n *fileNode) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	unlock, errno := n.s.lock()
	if errno != 0 {
		return 0, errno
	}
	defer unlock()
	c := change{off: off, data: slices.Clone(data)}
	n.f.seen = c.apply(n.f.seen)
	n.f.changes = append(n.f.changes, c)
	return uint32(len(data)), 0
}

// Fsync copies the content of the file to the disk.
func (n *fileNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	unlock, errno := n.s.lock()
	if errno != 0 {
		return errno
	}
	defer unlock()
	for _, c := range n.f.changes {
		n.f.kept = c.apply(n.f.kept)
	}
	n.f.changes = nil
	n.s.d.syncs++
	return 0
}

func (n *fileNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	unlock, errno := n.s.lock()
	if errno != 0 {
		return errno
	}
	defer unlock()
	out.Mode, out.Size, out.Ino = syscall.S_IFREG|0o600, uint64(len(n.f.seen)), n.f.ino+100
	return 0
}

func (n *fileNode) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		unlock, errno := n.s.lock()
		if errno != 0 {
			return errno
		}
		c := change{size: int64(size)}
		n.f.seen = c.apply(n.f.seen)
		n.f.changes = append(n.f.changes, c)
		unlock()
	}
	return n.Getattr(ctx, fh, out)
}
