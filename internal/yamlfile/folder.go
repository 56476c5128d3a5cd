package yamlfile

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// looksRead lists the suffixes, in lower case, of files that users expect to be read.
var looksRead = []string{".yaml", ".yml", ".conf", ".json"}

// Folder lists the files of a folder whose names end in one of exts, sorted by name. It ignores names that begin with
// a dot, such as locks of editors and metadata files of macOS. passedOver has the files that are not read although
// their suffix looks like it. The error is that of os.ReadDir.
func Folder(dir string, exts ...string) (files, passedOver []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name, ext := e.Name(), filepath.Ext(e.Name())
		switch {
		case strings.HasPrefix(name, ".") || e.IsDir():
		case slices.Contains(exts, ext):
			files = append(files, filepath.Join(dir, name))
		case slices.Contains(looksRead, strings.ToLower(ext)):
			passedOver = append(passedOver, filepath.Join(dir, name))
		}
	}
	return files, passedOver, nil
}

// Read returns the content of a regular file. It opens the file without blocking, since opening a pipe would block
// until another process writes to it.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(f)
}
