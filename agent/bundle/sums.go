package bundle

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Sums is the file with the checksums of all other files in a bundle.
const Sums = "BUNDLE.SHA256SUMS"

// The folders of a bundle.
const (
	imagesDir    = "images"
	manifestsDir = "manifests"
	configDir    = "config"
)

var folders = []string{imagesDir, manifestsDir, configDir}

// maxList bounds the size of a list of checksums and of other files that are read into memory.
const maxList = 16 << 20

// part matches a file name without special meaning to shells and file systems.
var part = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$`)

// goodName reports whether a file of a bundle may have this name.
func goodName(name string) bool {
	parts := strings.Split(name, "/")
	for _, p := range parts {
		if !part.MatchString(p) {
			return false
		}
	}
	return len(parts) == 1 || slices.Contains(folders, parts[0]) && len(parts) < 20
}

// sums maps names to SHA-256 checksums in hex.
type sums map[string]string

// parseSums parses the output of sha256sum.
func parseSums(raw []byte) (sums, error) {
	out := sums{}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; s.Scan(); n++ {
		sum, name, ok := strings.Cut(s.Text(), "  ")
		if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != sha256.Size || name == "" {
			return nil, fmt.Errorf("line %d is not a checksum and a name", n)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("line %d: %q is a duplicate", n, name)
		}
		out[name] = sum
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("it is empty")
	}
	return out, nil
}

func (s sums) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "%s  %s\n", s[name], name)
	}
	return b.String()
}

// compare returns the differences between a bundle's list and its files, one error per file.
func (s sums) compare(got sums) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		switch sum, ok := got[name]; {
		case !goodName(name) || name == Sums:
			errs = append(errs, fmt.Errorf("%s contains %q, which is not a valid name", Sums, name))
		case !ok:
			errs = append(errs, fmt.Errorf("%s is missing", name))
		case sum != s[name]:
			errs = append(errs, fmt.Errorf("%s is damaged: its SHA-256 differs from the one in %s", name, Sums))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		// Other files may be next to a release on a USB drive; files in the bundle's folders would be installed.
		if _, ok := s[name]; !ok && strings.Contains(name, "/") {
			errs = append(errs, fmt.Errorf("%s is not in %s", name, Sums))
		}
	}
	return errors.Join(errs...)
}

func sumOf(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func sumOfFile(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return sumOf(f)
}

// readAll reads everything and fails if it is larger than limit.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("larger than %d MiB", limit>>20)
	}
	return raw, err
}

func readFile(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	raw, err := readAll(f, limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return raw, nil
}

// under returns the names in one of the bundle's folders, relative to it.
func (s sums) under(folder string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if rest, ok := strings.CutPrefix(name, folder+"/"); ok {
			out = append(out, path.Clean(rest))
		}
	}
	return out
}
