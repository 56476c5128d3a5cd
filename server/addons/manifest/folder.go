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

// Settle is how long a file must be unchanged before it is read: a half-copied file may be valid YAML.
const Settle = 500 * time.Millisecond

// ErrFault marks errors of a File that a disk may cause, as opposed to a person: a dangling link or an unreadable file.
// The content of such a file is unknown.
var ErrFault = errors.New("cannot be read")

// Folder reads a folder of manifests repeatedly. It remembers when each file was first seen in its current form. It
// does not use the files' timestamps: a clock may jump, and a copy may preserve old times.
type Folder struct {
	dir     string
	seen    map[string]sighting // by path
	changed time.Time
}

// sighting is the form of a file and since when it has it.
type sighting struct {
	print string
	since time.Time
}

// NewFolder returns a reader of dir that has read nothing yet.
func NewFolder(dir string) *Folder { return &Folder{dir: dir, seen: map[string]sighting{}} }

// Scan is the result of reading a folder.
type Scan struct {
	Files map[string]File
	// Skips are the names that have a .skip file, whether or not the manifest exists.
	Skips map[string]bool
	// Dirs maps all folders, which must be watched, to their Identity.
	Dirs map[string]string
	// Empty means that there is no file in the folder and its subfolders, not even a hidden one.
	Empty bool
	// Links means that there are links to files, whose file systems may change without an event in the folder.
	Links bool
	// Unsettled maps the names of files that may still be being written to the reason. They are not in Files, and Merge
	// omits their names.
	Unsettled map[string]string
	// Busy lists other activity in the folder, and what could not be read: a file being written under another name,
	// git, an unreadable folder. A file that is missing elsewhere may come from there.
	Busy []string
	// Unfollowed maps links, by path in the folder, to the reason why the folder behind may exist but is not read.
	// Files below such a name do not count as removed.
	Unfollowed map[string]string
	// Overlooked maps files and links to folders that seem to be manifests but are not applied to the reason.
	Overlooked map[string]string
	// Changed is when the folder was last seen to change, or first seen.
	Changed time.Time
}

// Behind returns why a file of that name may exist behind a link that is not followed, "" if it cannot.
func (s Scan) Behind(name string) string {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if why := s.Unfollowed[dir]; why != "" {
			return why
		}
	}
	return ""
}

// Read finds the manifests in the folder. It follows links to files, and a link to the folder itself, but not links to
// folders, which may form cycles. An unreadable file is in the result with its error; the folder itself must be
// readable.
func (f *Folder) Read(now time.Time) (Scan, error) {
	s := Scan{Empty: true, Files: map[string]File{}, Skips: map[string]bool{}, Dirs: map[string]string{},
		Unsettled:  map[string]string{},
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
		r.changed = true // a file was added or removed
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

// reading is the state of one Read.
type reading struct {
	f       *Folder
	s       *Scan
	now     time.Time
	root    string // the folder without links
	seen    map[string]sighting
	changed bool
}

// shown is the path below the folder's configured name, for messages.
func (r *reading) shown(p string) string {
	return r.f.dir + strings.TrimPrefix(p, r.root)
}

func (r *reading) busy(p, format string, a ...any) {
	r.s.Busy = append(r.s.Busy, r.shown(p)+" "+fmt.Sprintf(format, a...))
}

// settled reports whether the file at a path has been unchanged for Settle.
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
		if !errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
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

// git checks whether git changes the work tree at dir: it removes files before it writes new ones.
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
		delete(r.seen, p) // deleted meanwhile
		return
	case errors.Is(err, fs.ErrNotExist):
		target, _ := os.Readlink(p) // for the message
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

// link checks the target of a link that may stand for a folder, and reports whether it is a regular file.
func (r *reading) link(p, rel string) (regular bool) {
	st, err := os.Stat(p)
	switch {
	case err != nil:
		r.s.Unfollowed[rel] = fmt.Sprintf("%s is a link to what is not there: %v", r.shown(p), err)
	case st.IsDir():
		why := r.shown(p) +
			" is a link to a folder; links to folders are not followed, put the folder itself there, or mount it"
		r.s.Unfollowed[rel], r.s.Overlooked[r.shown(p)] = why, why
	}
	return err == nil && st.Mode().IsRegular()
}

// other checks a file that is not a manifest: it may become one, like rsync's temporary files, or may be meant to be
// one.
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

// swap reports whether a name is that of a vim swap file, which is open as long as the editor is.
func swap(base string) bool {
	ext := filepath.Ext(base)
	return strings.HasPrefix(base, ".") && len(ext) == 4 && strings.HasPrefix(ext, ".sw")
}

// partial reports whether a name is that of rsync's temporary file, .NAME.XXXXXX.
func partial(base string) bool {
	ext := strings.TrimPrefix(filepath.Ext(base), ".")
	name := strings.TrimSuffix(base, "."+ext)
	return strings.HasPrefix(base, ".") && len(ext) == 6 && isManifest(strings.TrimPrefix(name, "."))
}

// ragged reports whether a text ends in the middle of a line, like an interrupted copy. JSON is complete without a
// newline.
func ragged(data []byte) bool {
	if len(data) == 0 || data[len(data)-1] == '\n' {
		return false
	}
	text := bytes.TrimSpace(data)
	return !slices.Contains([]byte("{["), text[0]) || !json.Valid(text)
}

// Identity distinguishes folders that were at the same path at different times.
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
