package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Mounts lists the mounts at a directory, the topmost last, and those below it, deepest first. Both are empty if the
// directory does not exist.
func Mounts(dir string) (at, below []*mountinfo.Info, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, nil, fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range all {
		if m.Mountpoint == dir {
			at = append(at, m)
		} else {
			below = append(below, m)
		}
	}
	// Later mounts cover earlier ones, so the reverse order is right for the same path as well.
	slices.Reverse(below)
	return at, below, nil
}

// Deleted reports whether the directory that a mount shows, or its mount point, has been removed.
func Deleted(m *mountinfo.Info) bool {
	return strings.HasSuffix(m.Root, "//deleted") || strings.HasSuffix(m.Mountpoint, "//deleted")
}

// MountedElsewhere reports whether dir is a mount point in another mount namespace of this machine and shows a
// directory other than data: the kernel removes such mounts together with dir. A mount that shows data is a copy that
// the namespace inherited when it was created.
func MountedElsewhere(dir, data string) (bool, error) {
	self, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return false, fmt.Errorf("read mount namespace: %w", err)
	}
	up, err := os.Stat(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	shown, _ := os.Stat(data)
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return false, err
	}
	seen := map[string]bool{self: true}
	for _, p := range processes {
		ns, err := os.Readlink(filepath.Join(p, "ns/mnt"))
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		mounts, err := mountsOf(p)
		if err != nil {
			continue // the process has ended
		}
		for _, m := range mounts {
			if !strings.HasSuffix(m.Mountpoint, dir) {
				continue
			}
			at := filepath.Join(p, "root", m.Mountpoint)
			// Skip namespaces with their own /var: their mount point is another directory.
			if above, err := os.Stat(filepath.Dir(at)); err != nil || !os.SameFile(above, up) {
				continue
			}
			if st, err := os.Stat(at); err == nil && (shown == nil || !os.SameFile(st, shown)) {
				return true, nil
			}
		}
	}
	return false, nil
}

// mountsOf reads the mounts of a process, which its folder in /proc names.
func mountsOf(process string) (_ []*mountinfo.Info, err error) {
	f, err := os.Open(filepath.Join(process, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return mountinfo.GetMountsFromReader(f, nil)
}
