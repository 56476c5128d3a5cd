// Package secretfiles finds files with secrets that users other than root can read. Server and agent use it. It imports
// nothing of umiak.
package secretfiles

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const (
	readOthers, readGroup = 0o004, 0o040
	searchAny             = 0o011
)

// File returns a warning with a remedy if users other than root can read a file; empty if they cannot, or if there is
// no such file.
func File(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	mode := info.Mode().Perm()
	st, ok := info.Sys().(*syscall.Stat_t)
	if byGroup := mode&readGroup != 0 && ok && st.Gid != 0; mode&readOthers == 0 && !byGroup {
		return ""
	}
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&searchAny == 0 {
			return "" // only root can reach the file
		}
	}
	return fmt.Sprintf("%s holds a secret and others than root can read it (mode %04o): chmod 600 %s", path, mode, path)
}
