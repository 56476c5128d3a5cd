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

// folder watches a folder, also through what happens to the folder itself: it may be removed and made again, renamed, replaced by a link
// or mounted over, and its files may be links to what comes later. So every folder on the way to it, and to its links' targets, is
// watched; those are few. All in one inotify instance.
type folder struct {
	dir     string
	w       *fsnotify.Watcher
	watched map[string]inode // the folders that are watched, and which ones they are
	on      via
	real    string // dir without links; empty while it is not there
}

// inode tells one folder from another that has taken its place.
type inode struct{ dev, ino uint64 }

// via is what lies on the way: by folder and name in it, the files of the watched folder to which it leads, "" for the folder itself.
type via map[string]map[string][]string

func (v via) add(dir, name, file string) {
	if v[dir] == nil {
		v[dir] = map[string][]string{}
	}
	v[dir][name] = append(v[dir][name], file)
}

// mostLinks is how many links the kernel follows in one path.
const mostLinks = 40

// walk follows a path as the kernel does, calls step for every folder and name on the way, and returns where it leads. The last name
// need not exist; then ok is false.
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
		if links++; links > mostLinks {
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

// look finds out what is to be watched.
func (f *folder) look() (v via, watched map[string]inode, real string) {
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
			watched[dir] = inode{uint64(st.Dev), st.Ino} //nolint:unconvert // not the same type on all machines
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

// watchFolder begins to watch.
func watchFolder(dir string) (*folder, error) {
	f := &folder{dir: dir}
	if _, err := f.update(); err != nil {
		return nil, err
	}
	return f, nil
}

// update looks again at what is to be watched, and reports whether that has changed; events may have been lost then.
func (f *folder) update() (changed bool, err error) {
	const often = 5 // it also changes while it is looked at; what goes on changing gives another event
	for range often {
		v, watched, real := f.look()
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

// watch watches folders in place of those of before.
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
		_ = f.w.Close() // nothing is lost with a watch
	}
}

// touched says which files of the folder an event is about, and whether it changes what is to be watched.
func (f *folder) touched(e fsnotify.Event) (files []string, again bool) {
	dir, name := filepath.Dir(e.Name), filepath.Base(e.Name)
	moved := e.Op&(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) != 0
	_, self := f.watched[e.Name]
	if _, onTheWay := f.on[dir][name]; moved && (self || onTheWay) {
		again = true
		f.watched = nil // a folder that is made again may be given the same inode
	}
	for _, file := range f.on[dir][name] {
		if file != "" {
			files = append(files, file)
		}
	}
	if dir == f.real {
		files = append(files, name)
		again = again || moved // it may be a link
	}
	return files, again
}
