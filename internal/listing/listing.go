// Package listing lists what of a folder has names of a pattern. Unlike filepath.Glob it takes the folder's own name as it is, whatever
// characters are in it, and says when it cannot be read.
//
// It imports nothing of umiak.
package listing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Match returns the paths below dir whose names match patterns of filepath.Match, one for each level, sorted. A folder that is not there
// has none.
func Match(dir string, patterns ...string) ([]string, error) {
	found := []string{dir}
	for level, pattern := range patterns {
		var below []string
		for _, d := range found {
			entries, err := os.ReadDir(d)
			if level > 0 && errors.Is(err, syscall.ENOTDIR) || errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				ok, err := filepath.Match(pattern, e.Name())
				if err != nil {
					return nil, fmt.Errorf("match names with %q: %w", pattern, err)
				}
				if ok {
					below = append(below, filepath.Join(d, e.Name()))
				}
			}
		}
		found = below
	}
	return found, nil
}
