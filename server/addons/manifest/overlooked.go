package manifest

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// asides are the extensions that people and tools give to what is not to be used.
var asides = []string{".bak", ".backup", ".orig", ".old", ".rej", ".save", ".disabled", ".off", ".skip", ".rpmsave", ".rpmnew", ".rpmorig",
	".dpkg-old", ".dpkg-new", ".dpkg-dist", ".tmp", ".part", ".filepart", ".md"}

// overlooked says why a file is not applied that seems to be meant to be: by its name, or by how it begins. It is empty for what
// nobody would take for a manifest.
func overlooked(base string, head []byte) string {
	low := strings.ToLower(base)
	ext := path.Ext(low)
	switch {
	case hidden(base) || slices.Contains(asides, ext):
		return ""
	case extension(low) != "":
		return "it is not applied: its name must end in small letters, " + ext
	case slices.Contains([]string{".gz", ".zst", ".xz", ".bz2", ".zip"}, ext) && extension(strings.TrimSuffix(low, ext)) != "":
		return "it is not applied: it is compressed and must be unpacked"
	case looksLike(head):
		return "it is not applied, though it looks like a manifest: its name must end in .yaml, .yml or .json"
	}
	return ""
}

// looksLike says whether a text begins as manifests do.
func looksLike(head []byte) bool {
	head = bytes.TrimPrefix(head, []byte("\xef\xbb\xbf"))
	for line := range bytes.Lines(head) {
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0 || line[0] == '#' || bytes.HasPrefix(line, []byte("---")) || line[0] == '%':
			continue
		case line[0] == '{':
			return bytes.Contains(head, []byte(`"apiVersion"`))
		}
		return bytes.HasPrefix(line, []byte("apiVersion:")) ||
			slices.ContainsFunc([]string{"kind:", "metadata:"}, func(k string) bool { return bytes.HasPrefix(line, []byte(k)) }) &&
				bytes.Contains(head, []byte("\napiVersion:"))
	}
	return false
}
