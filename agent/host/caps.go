package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The capabilities that umiak asks about, capabilities(7).
const (
	CapNetAdmin    = 12
	CapSysModule   = 16
	CapSysAdmin    = 21
	CapSysResource = 24
)

// Capabilities is the effective set of this process.
type Capabilities uint64

// Has says whether the capability is effective.
func (c Capabilities) Has(bit int) bool { return c&(1<<bit) != 0 }

// DetectCapabilities reads the effective set.
func DetectCapabilities() (Capabilities, error) {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return parseCapabilities(raw)
}

func parseCapabilities(status []byte) (Capabilities, error) {
	for l := range bytes.Lines(status) {
		if v, ok := strings.CutPrefix(string(l), "CapEff:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("read capabilities: %w", err)
			}
			return Capabilities(n), nil
		}
	}
	return 0, fmt.Errorf("read capabilities: /proc/self/status has no CapEff")
}

// InUserNamespace says whether this process is root of a user namespace only, as in an unprivileged container.
func InUserNamespace() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // a kernel without them
	}
	return !bytes.Equal(bytes.Join(bytes.Fields(raw), []byte(" ")), []byte("0 0 4294967295"))
}

// OOMScoreAdj is what this process's score is adjusted by now. Without CAP_SYS_RESOURCE the kernel lets
// nobody lower it, not for a child either.
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

// SwapOn says whether any swap space is in use.
func SwapOn() (bool, error) {
	raw, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return false, fmt.Errorf("read swap spaces: %w", err)
	}
	return bytes.Count(raw, []byte("\n")) > 1, nil
}

// OpenFiles is how many files the process may have open, and how many it may ask for.
func OpenFiles() (now, most uint64, err error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, 0, fmt.Errorf("read limit of open files: %w", err)
	}
	return l.Cur, l.Max, nil
}

// HasLogind says whether systemd-logind runs, by which a machine's shutdown can be delayed.
func HasLogind() bool {
	for _, p := range []string{"/run/systemd/inhibit", "/run/dbus/system_bus_socket"} {
		if _, err := os.Stat(p); err != nil {
			return false
		}
	}
	return true
}

// HasSeccomp says whether the kernel has filters of system calls, seccomp(2).
func HasSeccomp() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
}
