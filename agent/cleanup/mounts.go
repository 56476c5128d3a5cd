package cleanup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/folders"
)

// removeMounts unmounts what containerd and the kubelet have mounted, and the folders at fixed paths. A user's disk
// that is mounted at one of these directories, or in the data directory, stays.
func (c *cleaner) removeMounts(context.Context) error {
	var errs []error
	roots := []string{c.Dirs.Run}
	shown := folders.Of(c.Dirs)
	for _, root := range []string{folders.KubeletRoot, c.Dirs.Kubelet()} {
		if root == folders.KubeletRoot {
			if isShown, err := folders.Kubelet(c.Dirs).Shown(); err != nil || !isShown {
				errs = append(errs, err)
				continue
			}
		}
		for _, dir := range []string{"pods", "plugins", "plugins_registry"} {
			roots = append(roots, filepath.Join(root, dir))
		}
	}
	for _, root := range append(roots, filepath.Join(c.Dirs.ContainerdRoot(), "tmpmounts")) {
		_, below, err := host.Mounts(root)
		if err != nil {
			errs = append(errs, err)
		}
		for _, m := range below {
			path := strings.TrimSuffix(m.Mountpoint, "//deleted")
			err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			switch {
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // unmounted together with another one
			case err != nil:
				errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			default:
				c.printf("unmounted %s", path)
			}
		}
	}
	for _, f := range shown {
		errs = append(errs, f.Hide(func(at string) { c.printf("unmounted %s", at) }))
	}
	return errors.Join(append(errs, c.removeSelfMount(c.Dirs.Kubelet()))...)
}

// removeSelfMount unmounts a directory that is bind-mounted on itself, as the kubelets of earlier builds did where the
// root mount is not shared. The files below are the same.
func (c *cleaner) removeSelfMount(dir string) error {
	for {
		at, below, err := host.Mounts(dir)
		if err != nil || len(at) == 0 || len(below) > 0 {
			return err
		}
		top := at[len(at)-1]
		var parent *mountinfo.Info
		all, err := mountinfo.GetMounts(
			func(m *mountinfo.Info) (bool, bool) { return m.ID != top.Parent, m.ID == top.Parent })
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		if len(all) > 0 {
			parent = all[0]
		}
		if parent == nil || parent.Major != top.Major || parent.Minor != top.Minor ||
			filepath.Join(parent.Root, strings.TrimPrefix(top.Mountpoint,
				strings.TrimSuffix(parent.Mountpoint, "/"))) != top.Root {
			return nil
		}
		if err := unix.Unmount(top.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", top.Mountpoint, err)
		}
		c.printf("unmounted %s", top.Mountpoint)
	}
}

// removeNetns removes the named network namespaces of the killed processes. Those below the run directory were removed
// with its mounts.
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
		c.printf("removed network namespace %s", f)
	}
	return errors.Join(errs...)
}
