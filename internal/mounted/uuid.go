package mounted

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// isDevice reports whether the ID of a file system is just the number of its device in the kernel's encoding, or 0.
func isDevice(low, high, major, minor uint32) bool {
	return high == 0 && (low == 0 || low == minor&0xff|major<<8|(minor&^0xff)<<12)
}

// fsGetUUID is FS_IOC_GETFSUUID of linux/fs.h, _IOR(0x15, 0, struct fsuuid2).
const fsGetUUID = 0x80111500

// fsUUID is struct fsuuid2.
type fsUUID struct {
	size uint8
	uuid [16]byte
}

// byUUID is the folder in which udev links devices by the UUIDs of their file systems.
const byUUID = "/dev/disk/by-uuid"

// uuid returns the UUID of the file system at dir, which is on the device: from the kernel, or from udev, since the
// kernel does not have the UUIDs of all file systems. It returns "" if neither has it.
func uuid(dir, links string, major, minor uint32) string {
	if id := kernelUUID(dir); id != "" {
		return id
	}
	names, err := os.ReadDir(links)
	if err != nil {
		return "" // no udev
	}
	for _, n := range names {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(links, n.Name()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			continue
		}
		device := uint64(st.Rdev) //nolint:unconvert // not the same type on all machines
		if unix.Major(device) == major && unix.Minor(device) == minor {
			return strings.ToLower(strings.ReplaceAll(n.Name(), "-", "")) // in the kernel's form
		}
	}
	return ""
}

// kernelUUID returns the UUID of the file system at dir from the kernel, "" if it has none.
func kernelUUID(dir string) string {
	d, err := os.Open(dir)
	if err != nil {
		return ""
	}
	defer d.Close() //nolint:errcheck // nothing was written
	var u fsUUID
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), fsGetUUID, uintptr(unsafe.Pointer(&u))); errno != 0 ||
		int(u.size) > len(u.uuid) {
		return ""
	}
	return hex.EncodeToString(u.uuid[:u.size])
}
