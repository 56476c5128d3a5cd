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

// File is one manifest file.
type File struct {
	// Name is the path in the folder without extension, with slashes, as in the setting disable and .skip files.
	Name string
	// ID is the name in a form for label values and object names.
	ID string
	// Origin is Embedded or the file's path.
	Origin string
	// Skip means that the cluster must be left as it is.
	Skip bool
	// Data is the content, nil if Err is set.
	Data []byte
	// Sum is the content's SHA-256.
	Sum string
	// Place identifies the mounted file system of the file's folder, see mounted.At.
	Place string
	// Ragged means that the text ends in the middle of a line.
	Ragged bool
	// Doubt says why objects missing from the file may have been lost instead of removed by a person; "" if there is no
	// doubt.
	Doubt string
	// Err is the error of reading the content.
	Err error
}

// Embedded is the Origin of files that are part of the program.
const Embedded = "embedded"

// expand replaces ${NAME} by values. A name without a value is an error, because it would end up in the cluster.
func expand(text string, vars map[string]string) (string, error) {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(text, "${")
		out.WriteString(before)
		if !ok {
			return out.String(), nil
		}
		name, after, ok := strings.Cut(rest, "}")
		v, found := vars[name]
		if !ok || !found {
			return "", fmt.Errorf("no value for ${%s}", name)
		}
		out.WriteString(v)
		text = after
	}
}

// ReadEmbedded returns the embedded manifests, with vars expanded.
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
		text, err := expand(string(b), vars)
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

// Merge returns the folder's files and those embedded ones that no file of the same name replaces, so that users can
// change what every cluster gets.
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

// Disabled reports whether one of the names in the setting disable matches the manifest, by its whole name or the last
// part of it, with or without extension.
func Disabled(name string, disable []string) bool {
	return slices.ContainsFunc(disable, func(d string) bool {
		d = strings.TrimSuffix(d, extension(d))
		return d == name || d == path.Base(name)
	})
}

// Same reports whether two readings of a file are equal.
func (f File) Same(o File) bool {
	return f.Sum == o.Sum && f.Skip == o.Skip && f.Origin == o.Origin && f.Place == o.Place && f.Ragged == o.Ragged &&
		f.Doubt == o.Doubt &&
		fmt.Sprint(f.Err) == fmt.Sprint(o.Err)
}

// Mentions reports whether the text contains all words, each as a whole word: it may then describe an object, even if
// it cannot be decoded.
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

// ID converts a name to a form for label values and parts of object names. A name that had to be changed gets a hash,
// so that two names never give the same ID.
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

// hidden reports whether a name is that of a temporary file of an editor or an atomic writer, or of Kubernetes' ..data
// folders.
func hidden(base string) bool { return strings.HasPrefix(base, ".") || strings.HasSuffix(base, "~") }
