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

// looksRead are the ends of names by which people expect that a file is read, in lower case.
var looksRead = []string{".yaml", ".yml", ".conf", ".json"}

// Folder lists the files of a folder whose names end in one of exts, in the order of their names. Names that begin with a dot are not
// the user's: editors' locks, what macOS leaves beside a file. Names that merely look as if they were read are passedOver. The error is
// that of os.ReadDir.
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

// Read returns the content of a regular file. Nothing else is waited for: the open of a pipe would last until somebody writes to it.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(f)
}
