package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// File is one manifest as it was found.
type File struct {
	// Name is the path in its folder without extension, with slashes: what --disable and .skip name.
	Name string
	// ID is the name as a label value and a part of an object's name.
	ID string
	// Origin is "embedded" or the file's path.
	Origin string
	// Skip means: leave the cluster as it is.
	Skip bool
	// Data is the content, nil with Err.
	Data []byte
	// Sum is the content's SHA-256.
	Sum string
	// Err says why the content could not be read.
	Err error
}

// Embedded is the Origin of files that are part of the program.
const Embedded = "embedded"

// Expand puts values in for ${NAME}. A name without a value is an error: it would end up in the cluster.
func Expand(text string, vars map[string]string) (string, error) {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "${")
		out.WriteString(before)
		if !ok {
			return out.String(), nil
		}
		name, after, ok := strings.Cut(rest, "}")
		v, known := vars[name]
		if !ok || !known {
			return "", fmt.Errorf("no value for ${%s}", name)
		}
		out.WriteString(v)
		text = after
	}
}

// ReadEmbedded returns the program's own manifests, with vars put in.
func ReadEmbedded(fsys fs.FS, vars map[string]string) (map[string]File, error) {
	out := map[string]File{}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !isManifest(p) {
			return err
		}
		b, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		text, err := Expand(string(b), vars)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		f := newFile(p, Embedded)
		f.set([]byte(text))
		out[f.Name] = f
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read embedded manifests: %w", err)
	}
	return out, nil
}

// Scan is what was found in a folder.
type Scan struct {
	Files map[string]File
	// Skips are the names that have a .skip file, with or without a manifest beside it.
	Skips map[string]bool
	// Dirs are all folders, to be watched.
	Dirs []string
	// Unsettled are the names of files that changed a moment ago and may still be being written; they are
	// not in Files, and Merge leaves their names out altogether.
	Unsettled map[string]bool
}

// Settle is how long a file must have been left alone: a half-copied file may be valid YAML, and
// applying it would prune the objects that are not yet there.
const Settle = 500 * time.Millisecond

// ReadDir finds the manifests below dir. Links to files are followed, links to folders are not (they may
// form circles). A file that cannot be read is in the result with its error.
func ReadDir(dir string, now time.Time) (Scan, error) {
	s := Scan{Files: map[string]File{}, Skips: map[string]bool{}, Unsettled: map[string]bool{}}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) && p != dir {
				return nil // deleted while we were looking
			}
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if hidden(d.Name()) && p != dir {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			s.Dirs = append(s.Dirs, p)
			return nil
		}
		if base, ok := strings.CutSuffix(filepath.ToSlash(rel), ".skip"); ok {
			s.Skips[strings.TrimSuffix(base, extension(base))] = true
			return nil
		}
		if !isManifest(rel) {
			return nil
		}
		f := newFile(filepath.ToSlash(rel), p)
		if prev, dup := s.Files[f.Name]; dup {
			prev.Err = fmt.Errorf("%s and %s have the same name", prev.Origin, p)
			s.Files[f.Name] = prev
			return nil
		}
		data, mtime, err := read(p)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			f.Err = err
		case now.Sub(mtime) < Settle && now.After(mtime):
			s.Unsettled[f.Name] = true
			return nil
		default:
			f.set(data)
		}
		s.Files[f.Name] = f
		return nil
	})
	if err != nil {
		return Scan{}, fmt.Errorf("read manifests in %s: %w", dir, err)
	}
	return s, nil
}

// read opens without waiting (a named pipe would block) and reads regular files only.
func read(p string) ([]byte, time.Time, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !st.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("%s is not a regular file", p)
	}
	if st.Size() > MaxBytes {
		return nil, time.Time{}, fmt.Errorf("%s is larger than %d MiB", p, MaxBytes>>20)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	return b, st.ModTime(), err
}

// Merge lays the folder's files over the embedded ones: a file of the same name replaces one, so that
// users can change what every cluster gets.
func Merge(embedded map[string]File, s Scan) []File {
	all := maps.Clone(embedded)
	maps.Copy(all, s.Files)
	var out []File
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s.Unsettled[name] {
			continue
		}
		f := all[name]
		f.Skip = s.Skips[name]
		out = append(out, f)
	}
	return out
}

// Disabled says whether one of the names given to --disable means the manifest: by its whole name, or
// by the last part of it, with or without extension.
func Disabled(name string, disable []string) bool {
	return slices.ContainsFunc(disable, func(d string) bool {
		d = strings.TrimSuffix(d, extension(d))
		return d == name || d == path.Base(name)
	})
}

func (f *File) set(data []byte) {
	sum := sha256.Sum256(data)
	f.Data, f.Sum = data, hex.EncodeToString(sum[:])
}

func newFile(rel, origin string) File {
	name := strings.TrimSuffix(rel, extension(rel))
	return File{Name: name, ID: ID(name), Origin: origin}
}

// ID makes a name fit for a label value and for a part of an object's name. Names that had to be changed
// get a hash, so that two of them never become one.
func ID(name string) string {
	id := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, name)
	id = strings.Trim(id, "-")
	if id == name && len(id) <= 40 && id != "" {
		return id
	}
	sum := sha256.Sum256([]byte(name))
	id = strings.Trim(id[:min(len(id), 31)], "-")
	return strings.TrimPrefix(id+"-"+hex.EncodeToString(sum[:4]), "-")
}

func extension(p string) string {
	switch e := path.Ext(p); e {
	case ".yaml", ".yml", ".json":
		return e
	}
	return ""
}

func isManifest(p string) bool { return extension(p) != "" && !hidden(path.Base(p)) }

// hidden are the temporary files of editors and of atomic writers, and Kubernetes' own ..data folders.
func hidden(base string) bool { return strings.HasPrefix(base, ".") || strings.HasSuffix(base, "~") }
