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

// Sums is the file with the sums of all others in a bundle.
const Sums = "BUNDLE.SHA256SUMS"

// The folders of a bundle.
const (
	imagesDir    = "images"
	manifestsDir = "manifests"
	configDir    = "config"
)

var folders = []string{imagesDir, manifestsDir, configDir}

// maxList bounds what is read of a list of sums, or of anything else that is kept in memory.
const maxList = 16 << 20

// part is a file's or folder's name that no shell and no file system takes for something else.
var part = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$`)

// goodName says whether a file of a bundle may have this name.
func goodName(name string) bool {
	parts := strings.Split(name, "/")
	for _, p := range parts {
		if !part.MatchString(p) {
			return false
		}
	}
	return len(parts) == 1 || slices.Contains(folders, parts[0]) && len(parts) < 20
}

// sums are SHA-256 in hex, by name.
type sums map[string]string

// parseSums reads a list as sha256sum writes it.
func parseSums(raw []byte) (sums, error) {
	out := sums{}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for n := 1; s.Scan(); n++ {
		sum, name, ok := strings.Cut(s.Text(), "  ")
		if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != sha256.Size || name == "" {
			return nil, fmt.Errorf("line %d is no sum and name", n)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("line %d: %q was there before", n, name)
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

// compare says what of a bundle is not as its list has it. One error a file, all of them.
func (s sums) compare(got sums) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s)) {
		switch sum, ok := got[name]; {
		case !goodName(name) || name == Sums:
			errs = append(errs, fmt.Errorf("%s has %q, which is no name of a bundle's file", Sums, name))
		case !ok:
			errs = append(errs, fmt.Errorf("%s is missing", name))
		case sum != s[name]:
			errs = append(errs, fmt.Errorf("%s is damaged: its SHA-256 is not the one of %s", name, Sums))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		// Others may lie beside a release on a stick; what is in the folders would be installed.
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

// readAll reads what may not be larger than limit.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("is larger than %d MiB", limit>>20)
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

// under are the names in one of a bundle's folders, without it.
func (s sums) under(folder string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if rest, ok := strings.CutPrefix(name, folder+"/"); ok {
			out = append(out, path.Clean(rest))
		}
	}
	return out
}
