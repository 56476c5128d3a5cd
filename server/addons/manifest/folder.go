package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/umiak-io/umiak/internal/mounted"
)

// Settle is how long a file must have been left alone before it is read: a half-copied file may be valid YAML.
const Settle = 500 * time.Millisecond

// ErrFault marks the errors of a File that a disk may cause, as opposed to a person: the link's target is not there, the
// file cannot be read. What is in such a file is not known.
var ErrFault = errors.New("cannot be read")

// Folder reads a folder of manifests again and again. It remembers from one reading to the next when each file was first
// seen as it is. The files' own times are not used: a clock may jump, and a copy may bring old times along.
type Folder struct {
	dir     string
	seen    map[string]sighting // by path
	changed time.Time
}

// sighting is how a path looked, and since when it has looked so.
type sighting struct {
	print string
	since time.Time
}

// NewFolder returns a reader of dir. Nothing is read yet.
func NewFolder(dir string) *Folder { return &Folder{dir: dir, seen: map[string]sighting{}} }

// Scan is what was found in a folder.
type Scan struct {
	Files map[string]File
	// Skips are the names that have a .skip file, with or without a manifest beside it.
	Skips map[string]bool
	// Dirs are all folders, to be watched, each with what tells it from another one at the same path.
	Dirs map[string]string
	// Empty says that there is no file in the folder and those below it, not even a hidden one.
	Empty bool
	// Links says that there are links to files, whose file systems may come and go without an event in the folder.
	Links bool
	// Unsettled are the names of files that may still be being written, each with the reason. They are not in Files, and
	// Merge leaves their names out altogether.
	Unsettled map[string]string
	// Busy says what else is under way in the folder, or could not be looked into: a file that is being written under
	// another name, git, a folder that cannot be read. What is missing elsewhere may come from there.
	Busy []string
	// Unfollowed are links, by their path in the folder, behind which there may be a folder that is not looked into, each with
	// the reason: what was below a name of theirs has not been taken away.
	Unfollowed map[string]string
	// Overlooked are files, and links to folders, that look as if they were meant to be applied and are not, each with the reason.
	Overlooked map[string]string
	// Changed is when the folder was last seen to change, or first seen.
	Changed time.Time
}

// Behind says why a file of that name may be there all the same, behind a link that is not followed; it is empty if it cannot.
func (s Scan) Behind(name string) string {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if why := s.Unfollowed[dir]; why != "" {
			return why
		}
	}
	return ""
}

// Read finds the manifests in the folder. Links to files are followed, as is the folder itself; links to folders are not
// (they may form circles). A file that cannot be read is in the result with its error; the folder itself must be readable.
func (f *Folder) Read(now time.Time) (Scan, error) {
	s := Scan{Empty: true, Files: map[string]File{}, Skips: map[string]bool{}, Dirs: map[string]string{}, Unsettled: map[string]string{},
		Unfollowed: map[string]string{}, Overlooked: map[string]string{}}
	root, err := filepath.EvalSymlinks(f.dir)
	if err == nil {
		err = readable(root)
	}
	if err != nil {
		return Scan{}, fmt.Errorf("read manifests in %s: %w", f.dir, err)
	}
	r := reading{f: f, s: &s, now: now, root: root, seen: map[string]sighting{}}
	r.folder(root)
	for dir := filepath.Dir(root); dir != "/"; dir = filepath.Dir(dir) {
		r.git(dir)
	}
	if len(r.seen) != len(f.seen) {
		r.changed = true // one is gone, or came
	}
	for p := range f.seen {
		if _, still := r.seen[p]; !still {
			r.changed = true
		}
	}
	f.seen = r.seen
	if r.changed || f.changed.IsZero() {
		f.changed = now
	}
	s.Changed = f.changed
	return s, nil
}

func readable(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	_, err = d.ReadDir(-1)
	return errors.Join(err, d.Close())
}

// reading is one Read.
type reading struct {
	f       *Folder
	s       *Scan
	now     time.Time
	root    string // the folder without links
	seen    map[string]sighting
	changed bool
}

// shown is the path as people know it: below the folder's configured name.
func (r *reading) shown(p string) string {
	return r.f.dir + strings.TrimPrefix(p, r.root)
}

func (r *reading) busy(p, format string, a ...any) {
	r.s.Busy = append(r.s.Busy, r.shown(p)+" "+fmt.Sprintf(format, a...))
}

// settled says whether the path has looked like this for as long as Settle.
func (r *reading) settled(p, print string) bool {
	was, known := r.f.seen[p]
	if !known || was.print != print {
		was = sighting{print, r.now}
		r.changed = true
	}
	r.seen[p] = was
	return r.now.Sub(was.since) >= Settle
}

func (r *reading) folder(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // deleted while we were looking
			r.busy(dir, "cannot be read: %v", err)
		}
		return
	}
	r.s.Dirs[r.shown(dir)] = Identity(dir)
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir() && e.Name() == ".git":
			r.git(dir)
		case e.IsDir() && hidden(e.Name()):
		case e.IsDir():
			r.folder(p)
		default:
			r.s.Empty = false
			r.file(p, e)
		}
	}
}

// git looks whether git is at work in the work tree at dir: it takes files away before it writes those that follow.
func (r *reading) git(dir string) {
	if _, err := os.Lstat(filepath.Join(dir, ".git", "index.lock")); err == nil {
		p := filepath.Join(dir, ".git", "index.lock")
		if strings.HasPrefix(p, r.root+"/") {
			p = r.shown(p)
		}
		r.s.Busy = append(r.s.Busy, "git is at work: "+p+" is there")
	}
}

func (r *reading) file(p string, e fs.DirEntry) {
	rel, err := filepath.Rel(r.root, p)
	if err != nil {
		return // p is below root
	}
	rel = filepath.ToSlash(rel)
	if base, ok := strings.CutSuffix(rel, ".skip"); ok && !hidden(e.Name()) {
		r.s.Skips[strings.TrimSuffix(base, extension(base))] = true
		return
	}
	regular := e.Type().IsRegular()
	if e.Type()&fs.ModeSymlink != 0 && !hidden(e.Name()) {
		regular = r.link(p, rel)
	}
	if !isManifest(rel) {
		if regular {
			r.other(p, e)
		}
		return
	}
	r.s.Links = r.s.Links || e.Type()&fs.ModeSymlink != 0
	f := newFile(rel, r.shown(p))
	f.Place = mounted.At(filepath.Dir(p))
	if prev, dup := r.s.Files[f.Name]; dup {
		prev.Err = fmt.Errorf("%s and %s have the same name", prev.Origin, f.Origin)
		r.s.Files[f.Name] = prev
		return
	}
	c, err := read(p)
	settled := r.settled(p, c.print)
	switch {
	case errors.Is(err, fs.ErrNotExist) && e.Type()&fs.ModeSymlink == 0:
		delete(r.seen, p) // deleted while we were looking
		return
	case errors.Is(err, fs.ErrNotExist):
		target, _ := os.Readlink(p) // only to be shown
		f.Err = fmt.Errorf("%w: it is a link to %s, which is not there; is its disk mounted?", ErrFault, target)
	case errors.Is(err, errUnfit):
		f.Err = err
	case err != nil:
		f.Err = fmt.Errorf("%w: %w", ErrFault, err)
	case c.writers == written:
		r.s.Unsettled[f.Name] = f.Origin + " is open for writing"
		return
	case !settled:
		r.s.Unsettled[f.Name] = f.Origin + " is being written"
		return
	default:
		f.set(c.data)
		f.Ragged = ragged(c.data)
		switch {
		case len(bytes.TrimSpace(c.data)) == 0:
			f.Doubt = "it is empty"
		case c.writers == unknown:
			f.Doubt = "its file system does not tell whether somebody is writing to it"
		}
	}
	r.s.Files[f.Name] = f
}

// link looks where a link leads that may stand for a folder, and says whether that is a regular file.
func (r *reading) link(p, rel string) (regular bool) {
	st, err := os.Stat(p)
	switch {
	case err != nil:
		r.s.Unfollowed[rel] = fmt.Sprintf("%s is a link to what is not there: %v", r.shown(p), err)
	case st.IsDir():
		why := r.shown(p) + " is a link to a folder; links to folders are not followed, put the folder itself there, or mount it"
		r.s.Unfollowed[rel], r.s.Overlooked[r.shown(p)] = why, why
	}
	return err == nil && st.Mode().IsRegular()
}

// other looks at a file that is no manifest: it may become one, as those of rsync do, or be meant to be one.
func (r *reading) other(p string, e fs.DirEntry) {
	if swap(e.Name()) {
		return
	}
	c, err := look(p)
	if err != nil {
		return
	}
	r.settled(p, c.print)
	switch {
	case c.writers == written:
		r.busy(p, "is open for writing")
	case c.writers == unknown && partial(e.Name()):
		r.busy(p, "looks like half a copy of rsync")
	default:
		if why := overlooked(e.Name(), c.data); why != "" {
			r.s.Overlooked[r.shown(p)] = why
		}
	}
}

// swap tells vim's swap files, which are open as long as the editor is.
func swap(base string) bool {
	ext := filepath.Ext(base)
	return strings.HasPrefix(base, ".") && len(ext) == 4 && strings.HasPrefix(ext, ".sw")
}

// partial tells the name that rsync gives to a file until it is complete: .NAME.XXXXXX.
func partial(base string) bool {
	ext := strings.TrimPrefix(filepath.Ext(base), ".")
	name := strings.TrimSuffix(base, "."+ext)
	return strings.HasPrefix(base, ".") && len(ext) == 6 && isManifest(strings.TrimPrefix(name, "."))
}

// ragged says whether the text ends in the middle of a line, as a copy does that was broken off. JSON has an end of its own.
func ragged(data []byte) bool {
	if len(data) == 0 || data[len(data)-1] == '\n' {
		return false
	}
	text := bytes.TrimSpace(data)
	return !slices.Contains([]byte("{["), text[0]) || !json.Valid(text)
}

// Identity differs for two folders that were at the same path one after the other.
func Identity(dir string) string {
	st, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprint(sys.Dev, sys.Ino)
}
