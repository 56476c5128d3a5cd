package manifest

import (
	"bytes"
	"path"
	"slices"
	"strings"
)

// unusedExtensions are the extensions that people and tools give to files that must not be used.
var unusedExtensions = []string{".bak", ".backup", ".orig", ".old", ".rej", ".save", ".disabled", ".off", ".skip",
	".rpmsave", ".rpmnew", ".rpmorig",
	".dpkg-old", ".dpkg-new", ".dpkg-dist", ".tmp", ".part", ".filepart", ".md"}

// overlooked returns why a file that seems to be a manifest, by its name or its first lines, is not applied. It is ""
// for other files.
func overlooked(base string, head []byte) string {
	low := strings.ToLower(base)
	ext := path.Ext(low)
	switch {
	case hidden(base) || slices.Contains(unusedExtensions, ext):
		return ""
	case extension(low) != "":
		return "it is not applied: its extension must be in lower case, " + ext
	case slices.Contains([]string{".gz", ".zst", ".xz", ".bz2", ".zip"}, ext) &&
		extension(strings.TrimSuffix(low, ext)) != "":
		return "it is not applied: it is compressed and must be unpacked"
	case looksLike(head):
		return "it is not applied, though it looks like a manifest: its name must end in .yaml, .yml or .json"
	}
	return ""
}

// looksLike reports whether a text begins like a manifest.
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
			slices.ContainsFunc([]string{"kind:", "metadata:"},
				func(k string) bool { return bytes.HasPrefix(line, []byte(k)) }) &&
				bytes.Contains(head, []byte("\napiVersion:"))
	}
	return false
}
