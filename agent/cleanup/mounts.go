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

// removeMounts unmounts what containerd and the kubelet have mounted, and the folders that are shown elsewhere. A disk
// that somebody mounted as one of these directories, or in the data directory, stays.
func (c *cleaner) removeMounts(context.Context) error {
	var errs []error
	roots := []string{c.Dirs.Run}
	shown := folders.Of(c.Dirs)
	for _, root := range []string{folders.KubeletRoot, c.Dirs.Kubelet()} {
		if root == folders.KubeletRoot {
			if ours, err := folders.Kubelet(c.Dirs).Shown(); err != nil || !ours {
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
			case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // gone with another one
			case err != nil:
				errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			default:
				c.say("unmounted %s", path)
			}
		}
	}
	for _, f := range shown {
		errs = append(errs, f.Hide(func(at string) { c.say("unmounted %s", at) }))
	}
	return errors.Join(append(errs, c.removeSelfMount(c.Dirs.Kubelet()))...)
}

// removeSelfMount unmounts a directory that is mounted on itself, as kubelets of earlier builds did where the root of
// the machine is not shared. Nothing is lost with it: the same files are below.
func (c *cleaner) removeSelfMount(dir string) error {
	for {
		at, below, err := host.Mounts(dir)
		if err != nil || len(at) == 0 || len(below) > 0 {
			return err
		}
		top := at[len(at)-1]
		var parent *mountinfo.Info
		all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (bool, bool) { return m.ID != top.Parent, m.ID == top.Parent })
		if err != nil {
			return fmt.Errorf("list mounts: %w", err)
		}
		if len(all) > 0 {
			parent = all[0]
		}
		if parent == nil || parent.Major != top.Major || parent.Minor != top.Minor ||
			filepath.Join(parent.Root, strings.TrimPrefix(top.Mountpoint, strings.TrimSuffix(parent.Mountpoint, "/"))) != top.Root {
			return nil
		}
		if err := unix.Unmount(top.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", top.Mountpoint, err)
		}
		c.say("unmounted %s", top.Mountpoint)
	}
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
