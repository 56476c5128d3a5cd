package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
)

var count atomic.Int64

// newID is unique among all machines on the host and short enough for everything that it becomes part of.
func newID(name string) string {
	return fmt.Sprintf("%s-%d-%d", name, os.Getpid(), count.Add(1))
}

// startOf tells processes apart that were given the same number one after the other; it is empty when there
// is no such process.
func startOf(pid int) string {
	f := stat(pid)
	if f == nil || f[0] == "Z" {
		return ""
	}
	return f[19]
}

// writeOwner records which process owns the folder; a persistent one has no owner.
func writeOwner(dir string, persist bool) error {
	owner := fmt.Sprintf("%d %s\n", os.Getpid(), startOf(os.Getpid()))
	if persist {
		owner = "persists\n"
	}
	return os.WriteFile(filepath.Join(dir, "owner"), []byte(owner), 0o600)
}

// Sweep removes what machines left behind whose owner was killed. Their processes died with it.
func Sweep() error {
	dirs, err := filepath.Glob(filepath.Join(Root(), "*", "owner"))
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range dirs {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // another process sweeps too
		}
		pid, start, ok := strings.Cut(strings.TrimSpace(string(raw)), " ")
		n, err := strconv.Atoi(pid)
		if !ok || err != nil || startOf(n) == start {
			continue
		}
		id := filepath.Base(filepath.Dir(f))
		m, err := Open(id)
		if err != nil { // it died before it was up
			m = &Machine{ID: id, Dir: filepath.Join(Root(), id)}
			if m.cgroups, err = hierarchies(); err != nil {
				return err
			}
		}
		if err := m.Destroy(); err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}
