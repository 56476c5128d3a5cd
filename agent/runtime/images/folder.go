package images

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// folder watches a folder and what happens to the folder itself: removal, creation, renames, links, mounts, and links
// inside it whose targets appear later. It watches every folder on the path to it and to the targets of its links;
// those are few. All share one inotify instance.
type folder struct {
	dir     string
	w       *fsnotify.Watcher
	watched map[string]inode // the watched folders with their inodes
	on      via
	real    string // dir without links; "" while it does not exist
}

// inode distinguishes a folder from another one that replaced it at the same path.
type inode struct{ dev, ino uint64 }

// via maps each folder on a path, and the name of the next path element in it, to the files of the watched folder whose
// path leads through it; "" stands for the folder itself.
type via map[string]map[string][]string

func (v via) add(dir, name, file string) {
	if v[dir] == nil {
		v[dir] = map[string][]string{}
	}
	v[dir][name] = append(v[dir][name], file)
}

// maxLinks is how many links the kernel follows in one path (MAXSYMLINKS).
const maxLinks = 40

// walk resolves a path as the kernel does, calls step for every folder and name on the way, and returns the resolved
// path. ok is false if the path does not exist.
func walk(path string, step func(dir, name string)) (end string, ok bool) {
	rest := strings.Split(filepath.Clean(path), "/")
	at := "/"
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		step(at, name)
		next := filepath.Join(at, name)
		st, err := os.Lstat(next)
		if err != nil {
			return "", false
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", false
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", false
		}
		if filepath.IsAbs(to) {
			at = "/"
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return at, true
}

// paths determines what must be watched.
func (f *folder) paths() (v via, watched map[string]inode, real string) {
	v, watched = via{}, map[string]inode{}
	end, ok := walk(f.dir, func(dir, name string) { v.add(dir, name, "") })
	if ok {
		if st, err := os.Stat(end); err == nil && st.IsDir() {
			real = end
		}
	}
	if real != "" {
		v[real] = orEmpty(v[real])
		entries, err := os.ReadDir(real)
		if err == nil {
			for _, e := range entries {
				if e.Type()&fs.ModeSymlink != 0 && !isUnfinished(e.Name()) {
					walk(filepath.Join(real, e.Name()), func(dir, name string) { v.add(dir, name, e.Name()) })
				}
			}
		}
	}
	for dir := range v {
		var st syscall.Stat_t
		if err := syscall.Stat(dir, &st); err == nil {
			watched[dir] = inode{uint64(st.Dev), st.Ino} //nolint:unconvert // the type differs between architectures
		}
	}
	return v, watched, real
}

func orEmpty(m map[string][]string) map[string][]string {
	if m == nil {
		return map[string][]string{}
	}
	return m
}

// watchFolder returns a folder that is being watched.
func watchFolder(dir string) (*folder, error) {
	f := &folder{dir: dir}
	if _, err := f.update(); err != nil {
		return nil, err
	}
	return f, nil
}

// update determines again what must be watched, and reports whether that has changed; events may have been lost then.
func (f *folder) update() (changed bool, err error) {
	const attempts = 5 // paths may change meanwhile; later changes cause another event
	for range attempts {
		v, watched, real := f.paths()
		f.on, f.real = v, real
		if f.w != nil && maps.Equal(watched, f.watched) {
			break
		}
		changed = true
		if err := f.watch(watched); err != nil {
			return false, err
		}
	}
	return changed, nil
}

// watch replaces the watched folders.
func (f *folder) watch(dirs map[string]inode) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", f.dir, err)
	}
	for dir := range dirs {
		if err := w.Add(dir); errors.Is(err, fs.ErrNotExist) {
			delete(dirs, dir)
		} else if err != nil {
			return errors.Join(fmt.Errorf("watch %s: %w", dir, err), w.Close())
		}
	}
	f.close()
	f.w, f.watched = w, dirs
	return nil
}

func (f *folder) close() {
	if f.w != nil {
		_ = f.w.Close() // holds no data
	}
}

// touched returns the files of the folder that an event concerns, and whether the watched folders may have changed.
func (f *folder) touched(e fsnotify.Event) (files []string, rewatch bool) {
	dir, name := filepath.Dir(e.Name), filepath.Base(e.Name)
	moved := e.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0
	_, self := f.watched[e.Name]
	if _, onTheWay := f.on[dir][name]; moved && (self || onTheWay) {
		rewatch = true
		f.watched = nil // a new folder may get the same inode
	}
	for _, file := range f.on[dir][name] {
		if file != "" {
			files = append(files, file)
		}
	}
	if dir == f.real {
		files = append(files, name)
		rewatch = rewatch || moved // the file may be a link
	}
	return files, rewatch
}
