package cleanup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountsBelow lists what is mounted below a directory, deepest first, and whether it is itself a mount point.
func mountsBelow(dir string) (below []string, self bool, err error) {
	dir, err = filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, false, fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range all {
		if m.Mountpoint == dir {
			self = true
		} else {
			below = append(below, m.Mountpoint)
		}
	}
	// Later mounts lie on earlier ones: the reverse order of the list is right also for the same path.
	slices.Reverse(below)
	return below, self, nil
}

// removeMounts unmounts what containerd and the kubelet have mounted. A disk that somebody mounted as one
// of these directories, or as the containerd or images folder, stays.
func (c *cleaner) removeMounts(context.Context) error {
	var errs []error
	for _, root := range []string{
		c.Dirs.Run,
		filepath.Join(c.Dirs.Kubelet(), "pods"), filepath.Join(c.Dirs.Kubelet(), "plugins"), filepath.Join(c.Dirs.Kubelet(), "plugins_registry"),
		filepath.Join(c.Dirs.ContainerdRoot(), "tmpmounts"),
	} {
		below, _, err := mountsBelow(root)
		if err != nil {
			errs = append(errs, err)
		}
		for _, m := range below {
			path := strings.TrimSuffix(m, "//deleted")
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
				errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
				continue
			}
			c.say("unmounted %s", path)
		}
	}
	return errors.Join(errs...)
}

// removeNetns removes the named network namespaces whose processes were killed before. Those below the
// run directory are gone with its mounts.
func (c *cleaner) removeNetns(context.Context) error {
	files, err := filepath.Glob("/run/netns/cni-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range files {
		if i, err := inodeOf(f); err != nil || !c.netns[i] {
			continue
		}
		if err := unix.Unmount(f, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", f, err))
			continue
		}
		if err := os.Remove(f); err != nil {
			errs = append(errs, err)
			continue
		}
		c.say("removed network namespace %s", f)
	}
	return errors.Join(errs...)
}
