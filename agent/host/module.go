package host

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// errNoModule means that no such module is installed for the running kernel.
var errNoModule = errors.New("no such module is installed for this kernel")

// loadModule loads a kernel module and its dependencies, like modprobe without its configuration. The kernel loads most
// modules on first use; this is for the others.
func loadModule(name string) error {
	dir, files, err := findModule("/lib/modules", name)
	if err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	for _, f := range files {
		if !filepath.IsAbs(f) {
			f = filepath.Join(dir, f)
		}
		if err := insert(f); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %s: %w", name, f, err)
		}
	}
	return nil
}

// HasModule reports whether the module is installed for the running kernel.
func HasModule(name string) bool {
	_, _, err := findModule("/lib/modules", name)
	return err == nil
}

// findModule searches the running kernel's folder below root. It returns the folder and the files to load, in order.
func findModule(root, name string) (dir string, files []string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", nil, fmt.Errorf("read the kernel version: %w", err)
	}
	dir = filepath.Join(root, unix.ByteSliceToString(u.Release[:]))
	raw, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil, errNoModule
	}
	if err != nil {
		return "", nil, err
	}
	if files = moduleFiles(raw, name); len(files) == 0 {
		return "", nil, errNoModule
	}
	return dir, files, nil
}

// moduleFiles returns the files to load for a module, in order, from modules.dep, whose lines are `FILE:
// DEPENDENCIES…`, with the dependency to load first at the end.
func moduleFiles(dep []byte, name string) []string {
	for l := range bytes.Lines(dep) {
		file, needs, ok := strings.Cut(strings.TrimSpace(string(l)), ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if !ok || strings.ReplaceAll(base, "-", "_") != strings.ReplaceAll(name, "-", "_") {
			continue
		}
		out := append([]string{file}, strings.Fields(needs)...)
		slices.Reverse(out)
		return out
	}
	return nil
}

func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	err = unix.FinitModule(int(f.Fd()), "", flags)
	if flags == 0 || err == nil || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EPERM) {
		return err
	}
	// The kernel cannot decompress modules: do it here.
	image, e := decompress(f, path)
	if e != nil {
		return errors.Join(err, e)
	}
	return unix.InitModule(image, "")
}

func decompress(f io.ReadSeeker, path string) ([]byte, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	const maxModule = 64 << 20
	switch filepath.Ext(path) {
	case ".gz":
		r, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(r, maxModule))
	case ".zst":
		r, err := zstd.NewReader(f)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(io.LimitReader(r, maxModule))
	}
	return nil, fmt.Errorf("decompress module: unsupported format %s", filepath.Ext(path))
}
