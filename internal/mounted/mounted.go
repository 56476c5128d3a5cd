// Package mounted tells mounted file systems apart, so that a folder whose disk is not mounted is not taken for an empty one.
//
// The server and the agent use it. It imports nothing of umiak.
package mounted

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// At tells on which mounted file system dir is: by the file system's type and id, and by the number of the folder that
// is mounted, which tells bind mounts apart. It stays the same over a reboot. Where dir is not there, the nearest folder
// above it that is there counts: so a folder that was taken away leaves its place, and a disk that is not mounted does not.
// It is "" where it cannot be told.
//
// Where the id is the number of the device, as on XFS, F2FS and FAT, a disk may have another one after a reboot, and another disk the
// same. There the UUID counts, if the kernel (6.9 and later) or udev tells it.
func At(dir string) string {
	place, _ := at(dir)
	return place
}

// Still says whether dir is on place, which At returned before, be it that of a version that did not know UUIDs.
func Still(dir, place string) bool {
	now, byDevice := at(dir)
	return place != "" && (place == now || place == byDevice)
}

// at is At, and what it is without the UUID.
func at(dir string) (place, byDevice string) {
	for {
		real, err := filepath.EvalSymlinks(dir)
		switch {
		case err == nil:
			return of(real)
		case !os.IsNotExist(err):
			return "", ""
		}
		// A link whose target is not there is there itself: what is behind it is not known.
		if st, err := os.Lstat(dir); err == nil && st.Mode()&os.ModeSymlink != 0 || dir == "/" {
			return "", ""
		}
		dir = filepath.Dir(dir)
	}
}

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

// isRoot says whether something is mounted at dir.
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
