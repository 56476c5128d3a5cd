package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroup drivers, as the kubelet and containerd name them.
const (
	DriverSystemd  = "systemd"
	DriverCgroupfs = "cgroupfs"
)

// CgroupMount is the mount point of the cgroup file systems.
const CgroupMount = "/sys/fs/cgroup"

// Cgroup describes the machine's cgroups.
type Cgroup struct {
	// Version is 2 for the unified hierarchy, 1 for legacy and hybrid hierarchies.
	Version int
	// Driver is the cgroup driver of kubelet and runc: systemd on cgroup v2 under systemd, else cgroupfs.
	Driver string
	// Controllers are the available controllers, sorted.
	Controllers []string
}

// Has reports whether a controller is available.
func (c Cgroup) Has(controller string) bool { return slices.Contains(c.Controllers, controller) }

// Missing returns the missing controllers of those that pods need.
func (c Cgroup) Missing() []string {
	var out []string
	for _, n := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !c.Has(n) {
			out = append(out, n)
		}
	}
	return out
}

// DetectCgroup detects the machine's cgroups. root is the cgroup for pods: systemd creates cgroups only in its own
// tree, so any root other than / or a slice requires the cgroupfs driver.
func DetectCgroup(root string) (Cgroup, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(CgroupMount, &st); err != nil {
		return Cgroup{}, fmt.Errorf("stat %s (is it mounted?): %w", CgroupMount, err)
	}
	c := Cgroup{Version: 1, Driver: DriverCgroupfs}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		c.Version = 2
		raw, err := os.ReadFile(filepath.Join(CgroupMount, "cgroup.controllers"))
		if err != nil {
			return Cgroup{}, fmt.Errorf("read cgroup controllers: %w", err)
		}
		c.Controllers = strings.Fields(string(raw))
		if (root == "/" || strings.HasSuffix(root, ".slice")) && systemdManages() {
			c.Driver = DriverSystemd
		}
	} else {
		raw, err := os.ReadFile("/proc/cgroups")
		if err != nil {
			return Cgroup{}, fmt.Errorf("read cgroup controllers: %w", err)
		}
		for _, n := range enabledV1(raw) {
			if _, err := os.Stat(filepath.Join(CgroupMount, n, "cgroup.procs")); err == nil {
				c.Controllers = append(c.Controllers, n)
			}
		}
	}
	slices.Sort(c.Controllers)
	return c, nil
}

// enabledV1 returns the enabled controllers from /proc/cgroups, whose columns are name, hierarchy, number, enabled.
func enabledV1(raw []byte) []string {
	var out []string
	for l := range bytes.Lines(raw) {
		f := strings.Fields(string(l))
		if len(f) == 4 && !strings.HasPrefix(f[0], "#") && f[3] == "1" {
			out = append(out, f[0])
		}
	}
	return out
}

// systemdManages reports whether process 1 is systemd and can be reached.
func systemdManages() bool {
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil || strings.TrimSpace(string(comm)) != "systemd" {
		return false
	}
	if st, err := os.Stat("/run/systemd/system"); err != nil || !st.IsDir() { // sd_booted(3)
		return false
	}
	for _, s := range []string{"/run/systemd/private", "/run/dbus/system_bus_socket"} {
		if st, err := os.Stat(s); err == nil && st.Mode()&fs.ModeSocket != 0 {
			return true
		}
	}
	return false
}

// PrepareCgroup creates the cgroup for pods and enables its controllers, recording what it creates in the journal. It
// does nothing with the systemd driver: systemd creates slices on request.
func PrepareCgroup(c Cgroup, root string, j *Journal) error {
	if m := c.Missing(); len(m) > 0 {
		return fmt.Errorf("the kernel has no cgroup controller for %s; `umiak check` shows how to enable it",
			strings.Join(m, ", "))
	}
	if c.Driver == DriverSystemd {
		return nil
	}
	if c.Version == 2 {
		return prepareV2(c, root, j)
	}
	return prepareV1(root, j)
}

func prepareV2(c Cgroup, root string, j *Journal) error {
	want := "+" + strings.Join(c.Controllers, " +")
	dir := CgroupMount
	for _, part := range append([]string{""}, strings.FieldsFunc(root, func(r rune) bool { return r == '/' })...) {
		dir = filepath.Join(dir, part)
		if err := makeCgroup(dir, j); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(want), 0o644); err != nil {
			// Enable them one by one: realtime tasks can prevent enabling cpu, and the others are still wanted.
			for _, n := range c.Controllers {
				if e := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+n), 0o644); e != nil &&
					slices.Contains([]string{"cpu", "memory", "pids"}, n) {
					hint := ""
					if errors.Is(e, unix.EBUSY) {
						hint = ": this cgroup has processes, which prevents it; move them to a child cgroup, or set cgroup-root to a cgroup without processes"
					}
					return fmt.Errorf("enable cgroup controller %s in %s: %w%s", n, dir, e, hint)
				}
			}
		}
	}
	return nil
}

func prepareV1(root string, j *Journal) error {
	if root == "/" {
		return nil
	}
	for _, dir := range hierarchiesV1() {
		_, err := os.Stat(filepath.Join(dir, "cpuset.cpus"))
		cpuset := err == nil
		for _, part := range strings.FieldsFunc(root, func(r rune) bool { return r == '/' }) {
			dir = filepath.Join(dir, part)
			if err := makeCgroup(dir, j); err != nil {
				return err
			}
			if !cpuset {
				continue
			}
			// A new v1 cpuset is empty, and no process can run in it until it has CPUs and memory nodes.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inheritCpuset(dir, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// hierarchiesV1 returns the folders of all hierarchies of a v1 machine, including systemd's named one and the empty v2
// of hybrid machines: the kubelet needs its root in each v1 hierarchy, and runc creates it in the v2 one.
func hierarchiesV1() []string {
	procs, _ := filepath.Glob(filepath.Join(CgroupMount, "*", "cgroup.procs"))
	var out []string
	for _, p := range procs {
		dir, err := filepath.EvalSymlinks(filepath.Dir(p)) // cpu and cpuacct may be links to one hierarchy
		if err != nil || slices.Contains(out, dir) {
			continue
		}
		out = append(out, dir)
	}
	return out
}

func inheritCpuset(dir, file string) error {
	have, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return fmt.Errorf("read cpuset: %w", err)
	}
	if len(bytes.TrimSpace(have)) > 0 {
		return nil
	}
	parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil {
		return fmt.Errorf("read cpuset: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), parent, 0o644); err != nil {
		return fmt.Errorf("set cpuset: %w", err)
	}
	return nil
}

// ShimCgroup creates the cgroup for shims, recording it in the journal, and returns its name for containerd. Under
// systemd, shims would otherwise belong to umiak's unit, and `systemctl kill` would kill them; containers cannot run
// without their shims. It returns "" where systemd does not run.
func ShimCgroup(c Cgroup, root string, j *Journal) (string, error) {
	if !systemdManages() {
		return "", nil
	}
	return shimCgroup(CgroupMount, c, root, j)
}

func shimCgroup(mount string, c Cgroup, root string, j *Journal) (string, error) {
	dir := mount
	if c.Version == 1 {
		// Use the hierarchy in which systemd tracks units; the controllers' hierarchies stay unchanged. Hybrid systems
		// track units in an empty v2 next to v1, to which containerd cannot move a shim.
		dir = filepath.Join(mount, "systemd")
		_, hybrid := os.Stat(filepath.Join(mount, "unified"))
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || hybrid == nil {
			return "", nil
		}
	}
	if c.Driver == DriverSystemd {
		root = "/" // root is a slice, in which only systemd may create cgroups
	}
	name := filepath.Join("/", root, "umiak-shims")
	for part := range strings.FieldsFuncSeq(name, func(r rune) bool { return r == '/' }) {
		dir = filepath.Join(dir, part)
		if err := makeCgroup(dir, j); err != nil {
			return "", err
		}
	}
	return name, nil
}

func makeCgroup(dir string, j *Journal) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := j.Made(KindCgroup, dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	return nil
}

// PodCgroups returns the cgroups that the kubelet creates below root for all pods, one per hierarchy.
func PodCgroups(c Cgroup, root string) []string {
	name := "kubepods"
	if c.Driver == DriverSystemd {
		name = "kubepods.slice"
		if s := strings.TrimSuffix(filepath.Base(root), ".slice"); s != "/" {
			name = filepath.Join(root, s+"-kubepods.slice")
			root = "/"
		}
	}
	if c.Version == 2 {
		return []string{filepath.Join(CgroupMount, root, name)}
	}
	var out []string
	for _, dir := range hierarchiesV1() {
		out = append(out, filepath.Join(dir, root, name))
	}
	return out
}
