package folders

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
)

// kubeletRootInUse returns evidence that a folder is another kubelet's root: files in it, or mounts below it. Folders
// and sockets alone do not count: manifests create them (hostPath with DirectoryOrCreate). Neither does device-plugins,
// which every kubelet has at this path, whatever its root.
func kubeletRootInUse(at string) (string, error) {
	_, below, err := host.Mounts(at)
	if err != nil {
		return "", err
	}
	if len(below) > 0 {
		return below[0].Mountpoint + " is mounted", nil
	}
	found := ""
	err = filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir(), d.Type() == fs.ModeSocket:
			return nil
		case filepath.Dir(path) == filepath.Join(at, "device-plugins") &&
			(d.Name() == "kubelet_internal_checkpoint" || d.Name() == "DEPRECATION"):
			return nil
		}
		found = "there is " + path
		return fs.SkipAll
	})
	return found, err
}

// logsInUse returns which process writes logs to a folder. Logs without a writer do not count: they are only hidden
// while the folder is covered.
func logsInUse(at string) (string, error) {
	type inode struct{ dev, ino uint64 }
	logs := map[inode]bool{}
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			logs[inode{st.Dev, st.Ino}] = true
		}
		return nil
	})
	if err != nil || len(logs) == 0 {
		return "", err
	}
	open, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "", err
	}
	for _, fd := range open {
		// Compare names first: a stat can block on a network file system.
		if name, err := os.Readlink(fd); err != nil || !strings.HasPrefix(name, at+"/") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || !logs[inode{st.Dev, st.Ino}] || !writes(fd) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm"))
		return fmt.Sprintf("process %s (%s) writes logs there", pid, strings.TrimSpace(string(name))), nil
	}
	return "", nil
}

// writes reports whether a file descriptor, given as /proc/PID/fd/N, is open for writing.
func writes(fd string) bool {
	raw, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		var flags int
		if n, _ := fmt.Sscanf(line, "flags: %o", &flags); n == 1 {
			return flags&unix.O_ACCMODE != unix.O_RDONLY
		}
	}
	return false
}
