// Package listing lists the entries of a folder whose names match a pattern. Unlike filepath.Glob, it takes the name
// of the folder literally, whatever characters it has, and returns an error if the folder cannot be read.
//
// It imports nothing of umiak; any package may call it.
package listing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Match returns the paths below dir whose names match patterns (as in filepath.Match), one pattern per level, sorted. A
// folder that does not exist has no entries.
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
