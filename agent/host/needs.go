package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// The Try functions test what a node needs from its machine. Parts that can start only once call them before they
// start, and `umiak check` calls them too. They leave nothing behind; each error says what to do.

// TryKmsg opens the kernel log, in which the kubelet reads which processes the OOM killer has ended.
func TryKmsg() error {
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf(
			"the kubelet cannot read the kernel log (%w): give umiak access to /dev/kmsg; in an LXC container, bind-mount it from the host; with kernel.dmesg_restrict, give it CAP_SYSLOG", err)
	}
	return f.Close()
}

// TryInotify creates a number of inotify instances and closes them.
func TryInotify(number int) error {
	var open []int
	defer func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	}()
	for range number {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			limit, _ := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
			return fmt.Errorf(
				"%d inotify instances are left of the %s that a user may have, %d are needed (%w): raise fs.inotify.max_user_instances, or stop the programs that watch so many files",
				len(open), strings.TrimSpace(string(limit)), number, err)
		}
		open = append(open, fd)
	}
	return nil
}

// Existing returns dir, or its nearest parent that is a folder.
func Existing(dir string) string {
	for dir != "/" && dir != "." {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

// TryDisk writes a file in a folder, or in its nearest existing parent, and removes it.
func TryDisk(dir string) error {
	dir = Existing(dir)
	f, err := os.CreateTemp(dir, ".umiak-try-")
	if err == nil {
		_, err = f.Write(make([]byte, 64<<10))
		err = errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	switch {
	case atomicfile.NoSpace(err):
		return fmt.Errorf("the disk of %s is full (%w): make room", dir, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf(
			"the disk of %s is read-only (%w): mount it writable, and check the kernel log for errors of the disk", dir,
			err)
	case err != nil:
		return fmt.Errorf("write in %s: %w", dir, err)
	}
	return nil
}

// TryExec runs a program to its end. If the program cannot be executed because its file system is mounted noexec, the
// error says so.
func TryExec(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	var st unix.Statfs_t
	if errors.Is(err, unix.EACCES) && unix.Statfs(program, &st) == nil && st.Flags&unix.ST_NOEXEC != 0 {
		return noexec(filepath.Dir(program))
	}
	return fmt.Errorf("execute %s: %w: %s", program, err, strings.TrimSpace(string(out)))
}

// TryExecIn checks whether programs can be executed in a folder, or in its nearest existing parent.
func TryExecIn(dir string) error {
	dir = Existing(dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // executing a program names the reason
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return noexec(dir)
	}
	return nil
}

func noexec(dir string) error {
	return fmt.Errorf(
		"%s is on a file system that is mounted noexec, where the container programs cannot be executed: mount -o remount,exec it, or set another data-dir", dir)
}

// TryHostsFile reads /etc/hosts, which containerd copies for every pod.
func TryHostsFile() error {
	if _, err := os.ReadFile("/etc/hosts"); err != nil {
		return fmt.Errorf("no pod can start without /etc/hosts (%w): create it with the line 127.0.0.1 localhost", err)
	}
	return nil
}

// kubeletValues are the values to which the kubelet sets KubeletSysctls, see k8s.io/component-helpers/node/util/sysctl.
var kubeletValues = map[string]int{
	"vm.overcommit_memory": 1, "vm.panic_on_oom": 0, "kernel.panic": 10, "kernel.panic_on_oops": 1,
	"kernel.keys.root_maxkeys": 1000000, "kernel.keys.root_maxbytes": 25000000,
}

// TrySysctls checks whether the kubelet's sysctls have their values or can be set.
func TrySysctls() error { return trySysctls("/proc/sys") }

// CheckSysctls checks whether the kubelet's sysctls have their values, for a kubelet that must not set them.
func CheckSysctls() error { return checkSysctls("/proc/sys") }

func checkSysctls(sys string) error {
	bad := otherSysctls(sys, func(string) bool { return false })
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("kernel parameters differ from those that the kubelet needs, and protect-kernel-defaults keeps "+
		"it from changing them: set %s in /etc/sysctl.d, run `sysctl --system`, or leave protect-kernel-defaults out",
		strings.Join(bad, " "))
}

// otherSysctls lists, as NAME=VALUE, the kubelet's sysctls that do not have their values and whose files do not pass.
func otherSysctls(sys string, passes func(file string) bool) (bad []string) {
	for _, name := range KubeletSysctls {
		file := filepath.Join(sys, strings.ReplaceAll(name, ".", "/"))
		raw, err := os.ReadFile(file)
		if now, e := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && e == nil &&
			now == kubeletValues[name] {
			continue
		}
		if err != nil || !passes(file) {
			bad = append(bad, fmt.Sprintf("%s=%d", name, kubeletValues[name]))
		}
	}
	return bad
}

func trySysctls(sys string) error {
	bad := otherSysctls(sys, func(file string) bool { return unix.Access(file, unix.W_OK) == nil })
	if len(bad) > 0 {
		return fmt.Errorf(
			"the kubelet cannot set kernel parameters that it needs: set %s on the host, or give umiak write access to /proc/sys", strings.Join(bad, " "))
	}
	return nil
}

// TryCgroups creates a cgroup below the root for pods in each hierarchy, and removes it.
func TryCgroups(c Cgroup, root string) error {
	if m := c.Missing(); len(m) > 0 {
		return fmt.Errorf("the kernel has no cgroup controller for %s: `umiak check` shows how to enable it",
			strings.Join(m, ", "))
	}
	if c.Driver == DriverSystemd {
		return nil // systemd creates them
	}
	dirs := []string{CgroupMount}
	if c.Version == 1 {
		dirs = hierarchiesV1()
	}
	for _, dir := range dirs {
		try := filepath.Join(dir, root)
		if _, err := os.Stat(try); err != nil {
			try = dir // PrepareCgroup creates it below this one
		}
		try = filepath.Join(try, fmt.Sprintf("umiak-try-%d", os.Getpid()))
		err := os.Mkdir(try, 0o755)
		if err == nil || errors.Is(err, os.ErrExist) {
			err = os.Remove(try)
		}
		if err != nil {
			return fmt.Errorf(
				"no cgroup can be made in %s (%w): mount it writable; a container needs a cgroup that is delegated to it", dir, err)
		}
	}
	return nil
}
