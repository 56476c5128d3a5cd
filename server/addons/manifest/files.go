package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
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
	// Place is the mounted file system that the folder with the file is on, see mounted.At.
	Place string
	// Ragged says that the text ends in the middle of a line.
	Ragged bool
	// Doubt says why what is not in the file may have been lost on the way, instead of being left out by a person.
	Doubt string
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

// Merge lays the folder's files over the embedded ones: a file of the same name replaces one, so that
// users can change what every cluster gets.
func Merge(embedded map[string]File, s Scan) []File {
	all := maps.Clone(embedded)
	maps.Copy(all, s.Files)
	var out []File
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s.Unsettled[name] != "" {
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

// Same says whether two readings of a file found the same.
func (f File) Same(o File) bool {
	return f.Sum == o.Sum && f.Skip == o.Skip && f.Origin == o.Origin && f.Place == o.Place && f.Ragged == o.Ragged && f.Doubt == o.Doubt &&
		fmt.Sprint(f.Err) == fmt.Sprint(o.Err)
}

// Mentions says whether the text has both words in it, each as a whole: whether it may be about an object, though it
// cannot be decoded.
func Mentions(text []byte, words ...string) bool {
	for _, w := range words {
		if !mentions(text, w) {
			return false
		}
	}
	return len(text) > 0
}

func mentions(text []byte, word string) bool {
	part := func(b byte) bool {
		return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '.'
	}
	for at := 0; ; {
		i := bytes.Index(text[at:], []byte(word))
		if i < 0 {
			return false
		}
		begin, end := at+i, at+i+len(word)
		if (begin == 0 || !part(text[begin-1])) && (end == len(text) || !part(text[end])) {
			return true
		}
		at = begin + 1
	}
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
