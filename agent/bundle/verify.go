package bundle

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/umiak-io/umiak/internal/layout"
)

// Contents lists what a bundle contains: file names in its folders.
type Contents struct {
	Programs  []string `json:"programs"` // such as umiak-linux-arm64
	Images    []string `json:"images"`
	Manifests []string `json:"manifests"`
	Config    []string `json:"config"`
}

func (s sums) contents() Contents {
	c := Contents{Images: s.under(imagesDir), Manifests: s.under(manifestsDir), Config: s.under(configDir)}
	for name := range s {
		if p, ok := strings.CutSuffix(name, ".gz"); ok && !strings.Contains(name, "/") {
			c.Programs = append(c.Programs, p)
		}
	}
	return c.sorted()
}

// Verify compares all files of a bundle, or of the folder to which it was unpacked, with its checksums.
func Verify(from string) (Contents, error) {
	info, err := os.Stat(from)
	if err != nil {
		return Contents{}, err
	}
	var list sums
	if info.IsDir() {
		list, err = verifyFolder(from, func(string) bool { return true })
	} else {
		var f *os.File
		if f, err = os.Open(from); err != nil {
			return Contents{}, err
		}
		defer f.Close() //nolint:errcheck // opened for reading
		list, err = verifyTar(f)
	}
	if err != nil {
		return Contents{}, fmt.Errorf("bundle %s: %w", from, err)
	}
	return list.contents(), nil
}

// verifyFolder verifies the files for which want is true.
func verifyFolder(dir string, want func(name string) bool) (sums, error) {
	raw, err := readFile(filepath.Join(dir, Sums), maxList)
	if err != nil {
		return nil, err
	}
	all, err := parseSums(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Sums, err)
	}
	list, got := sums{}, sums{}
	for name := range all {
		if want(name) {
			list[name] = all[name]
		}
	}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		_, listed := list[name]
		switch {
		case d.IsDir() && !goodName(name+"/x"):
			return fs.SkipDir // not part of the bundle
		case d.IsDir() || !listed && (!want(name) || !strings.Contains(name, "/")):
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is not a file", name)
		}
		got[name], err = sumOfFile(p)
		return err
	})
	return list, errors.Join(err, list.compare(got))
}

func verifyTar(r io.Reader) (sums, error) {
	var list sums
	got := sums{}
	err := each(r, func(name string, r io.Reader) error {
		if name != Sums {
			sum, err := sumOf(r)
			got[name] = sum
			return err
		}
		raw, err := readAll(r, maxList)
		if err == nil {
			list, err = parseSums(raw)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", Sums, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if list == nil {
		return nil, fmt.Errorf("it contains no %s: it is not a bundle", Sums)
	}
	return list, list.compare(got)
}

// Target is a file of an unpacked bundle and its path on a machine.
type Target struct{ File, Path string }

// Targets verifies the content of an unpacked bundle, except programs, and returns its paths on a server or an agent.
func Targets(dir string, server bool, dirs layout.Dirs) ([]Target, error) {
	config := configDir + "/agent.yaml"
	if server {
		config = configDir + "/server.yaml"
	}
	list, err := verifyFolder(dir, func(name string) bool { return strings.Contains(name, "/") })
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", dir, err)
	}
	var out []Target
	for _, n := range list.under(imagesDir) {
		out = append(out, Target{filepath.Join(dir, imagesDir, n), filepath.Join(dirs.Images(), n)})
	}
	if server {
		for _, n := range list.under(manifestsDir) {
			out = append(out, Target{filepath.Join(dir, manifestsDir, n), filepath.Join(dirs.Manifests(), n)})
		}
	}
	if _, ok := list[config]; ok {
		out = append(out, Target{filepath.Join(dir, config), Settings})
	}
	return out, nil
}

// Settings is the path of a bundle's settings. install.sh's settings file sorts after it, and so takes precedence.
const Settings = "/etc/umiak/config.yaml.d/40-bundle.yaml"

var errEmpty = errors.New("it is empty")

// each calls f for every file of a tar archive with its name in the bundle; parent folders of the bundle's folders are
// ignored.
func each(r io.Reader, f func(name string, r io.Reader) error) error {
	archive, left := tar.NewReader(r), int64(maxBytes)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = errEmpty
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		name := inBundle(h.Name)
		switch {
		case h.Typeflag != tar.TypeReg || name == "":
			return fmt.Errorf("%q in the archive is not a file", h.Name)
		case n >= maxFiles:
			return fmt.Errorf("the archive has more than %d files", maxFiles)
		case h.Size > left:
			return fmt.Errorf("the archive has more than %d GiB", maxBytes>>30)
		}
		left -= h.Size
		if err := f(name, archive); err != nil {
			return fmt.Errorf("unpack %s: %w", name, err)
		}
	}
}
