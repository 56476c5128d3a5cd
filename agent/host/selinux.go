package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// runtimeDomain is the SELinux type from which the policy container-selinux lets containers be started with labels.
const runtimeDomain = "container_runtime_t"

// TrySELinux checks whether this process may give labels to containers where SELinux enforces its policy. Without
// SELinux, or where it only reports, there is nothing to check.
func TrySELinux() error { return trySELinux("/sys/fs/selinux", "/proc/self/attr/current") }

func trySELinux(selinuxfs, context string) error {
	enforce, err := os.ReadFile(filepath.Join(selinuxfs, "enforce"))
	if err != nil || strings.TrimSpace(string(enforce)) != "1" {
		return nil //nolint:nilerr // the kernel has no SELinux, or it is off
	}
	raw, err := os.ReadFile(context)
	if err != nil {
		return fmt.Errorf("read the SELinux label of this process: %w", err)
	}
	label := string(bytes.Trim(raw, "\x00\n")) // USER:ROLE:TYPE:LEVEL
	if part := strings.SplitN(label, ":", 4); len(part) > 2 && part[2] == runtimeDomain {
		return nil
	}
	return fmt.Errorf("SELinux enforces, and umiak runs as %s instead of in the domain %s (selinux is set): install the "+
		"policy container-selinux and give umiak the label container_runtime_exec_t, or leave selinux out", label,
		runtimeDomain)
}
