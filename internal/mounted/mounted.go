// Package mounted identifies mounted file systems, so that a folder whose disk is not mounted is not taken for an
// empty one.
//
// The server, the agent and internal/datadisk use it. It imports nothing of umiak.
package mounted

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// At returns an identifier of the mounted file system on which dir is, made of the type and ID of the file system and
// the inode number of the mounted folder, which differs between bind mounts. It does not change with a reboot. If dir
// does not exist, At uses its nearest existing parent: the result is the same after dir was removed, but not after
// its disk was unmounted. It returns "" if the file system cannot be identified.
//
// If the ID is a device number, as on XFS, F2FS and FAT, it may differ after a reboot, and another disk may have it.
// Then the UUID replaces it, if the kernel (6.9 and later) or udev provides one.
func At(dir string) string {
	place, _ := at(dir)
	return place
}

// Still reports whether dir is on place, an earlier result of At, also of a version of this package without UUIDs.
func Still(dir, place string) bool {
	now, byDevice := at(dir)
	return place != "" && (place == now || place == byDevice)
}

// at returns the result of At, with and without the UUID.
func at(dir string) (place, byDevice string) {
	for {
		real, err := filepath.EvalSymlinks(dir)
		switch {
		case err == nil:
			return of(real)
		case !os.IsNotExist(err):
			return "", ""
		}
		// A link whose target does not exist: the file system of the target is unknown.
		if st, err := os.Lstat(dir); err == nil && st.Mode()&os.ModeSymlink != 0 || dir == "/" {
			return "", ""
		}
		dir = filepath.Dir(dir)
	}
}

// of is at for an existing folder without links in its path.
func of(dir string) (place, byDevice string) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", ""
	}
	for {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &st); err != nil {
			return "", ""
		}
		if !isRoot(dir, &st) {
			dir = filepath.Dir(dir)
			continue
		}
		low, high := uint32(fs.Fsid.Val[0]), uint32(fs.Fsid.Val[1])
		byDevice = fmt.Sprintf("%x:%08x%08x:%d", uint32(fs.Type), low, high, st.Ino)
		if !isDevice(low, high, st.Dev_major, st.Dev_minor) {
			return byDevice, byDevice
		}
		if id := uuid(dir, byUUID, st.Dev_major, st.Dev_minor); id != "" {
			return fmt.Sprintf("%x:%s:%d", uint32(fs.Type), id, st.Ino), byDevice
		}
		return byDevice, byDevice
	}
}

// isRoot reports whether dir is a mount point.
func isRoot(dir string, st *unix.Statx_t) bool {
	if dir == "/" {
		return true
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	var up unix.Statx_t // kernels before 5.8
	err := unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &up)
	return err != nil || up.Dev_major != st.Dev_major || up.Dev_minor != st.Dev_minor
}
