package host

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/moby/sys/userns"
	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Capabilities that umiak checks, see capabilities(7).
const (
	CapNetAdmin    = "CAP_NET_ADMIN"
	CapSysModule   = "CAP_SYS_MODULE"
	CapSysAdmin    = "CAP_SYS_ADMIN"
	CapSysResource = "CAP_SYS_RESOURCE"
)

// Capabilities are the names of the effective capabilities of this process.
type Capabilities []string

// Has reports whether the capability is effective.
func (c Capabilities) Has(name string) bool { return slices.Contains(c, name) }

// DetectCapabilities reads the effective capabilities of this process.
func DetectCapabilities() (Capabilities, error) {
	c, err := cap.Current()
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	return c, nil
}

// InUserNamespace reports whether this process runs in a user namespace of its own, as in an unprivileged container.
func InUserNamespace() bool { return userns.RunningInUserNS() }

// OOMScoreAdj returns this process's oom_score_adj. Without CAP_SYS_RESOURCE the kernel refuses to lower it, also for
// children.
func OOMScoreAdj() (int, error) {
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	return n, nil
}

// SwapOn reports whether any swap space is in use.
func SwapOn() (bool, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return false, fmt.Errorf("read swap spaces: %w", err)
	}
	all, err := fs.Swaps()
	if err != nil {
		return false, fmt.Errorf("read swap spaces: %w", err)
	}
	return len(all) > 0, nil
}

// OpenFiles returns the soft and the hard limit of open files of this process.
func OpenFiles() (soft, hard uint64, err error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, 0, fmt.Errorf("read limit of open files: %w", err)
	}
	return l.Cur, l.Max, nil
}

// HasLogind reports whether systemd-logind runs, which can delay a shutdown of the machine.
func HasLogind() bool {
	for _, p := range []string{"/run/systemd/inhibit", "/run/dbus/system_bus_socket"} {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}

// HasSeccomp reports whether the kernel supports system call filters, seccomp(2).
func HasSeccomp() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
}
