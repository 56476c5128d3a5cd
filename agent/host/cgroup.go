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

// The cgroup drivers, as kubelet and containerd name them.
const (
	DriverSystemd  = "systemd"
	DriverCgroupfs = "cgroupfs"
)

// CgroupMount is where the cgroup file systems are mounted on every Linux distribution.
const CgroupMount = "/sys/fs/cgroup"

// Cgroup is what the machine's cgroups are like.
type Cgroup struct {
	// Version is 2 for the unified hierarchy, otherwise 1 (also for the hybrid of both).
	Version int
	// Driver is who makes the pods' cgroups: systemd where it rules the unified hierarchy, otherwise we.
	Driver string
	// Controllers are those that can be used, sorted.
	Controllers []string
}

// Has says whether a controller can be used.
func (c Cgroup) Has(controller string) bool { return slices.Contains(c.Controllers, controller) }

// Missing are the controllers without which pods cannot be run.
func (c Cgroup) Missing() []string {
	var out []string
	for _, n := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !c.Has(n) {
			out = append(out, n)
		}
	}
	return out
}

// DetectCgroup looks at the machine. root is the cgroup under which pods are to be put: systemd can only
// be asked for cgroups in its own tree, so any other root than / or a slice means the cgroupfs driver.
func DetectCgroup(root string) (Cgroup, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(CgroupMount, &st); err != nil {
		return Cgroup{}, fmt.Errorf("look at %s (is it mounted?): %w", CgroupMount, err)
	}
	c := Cgroup{Version: 1, Driver: DriverCgroupfs}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		c.Version = 2
		raw, err := os.ReadFile(filepath.Join(CgroupMount, "cgroup.controllers"))
		if err != nil {
			return Cgroup{}, fmt.Errorf("read cgroup controllers: %w", err)
		}
		c.Controllers = strings.Fields(string(raw))
		if (root == "/" || strings.HasSuffix(root, ".slice")) && systemdRules() {
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

// enabledV1 reads /proc/cgroups: name, hierarchy, number, enabled.
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

// systemdRules says whether process 1 is a systemd that can be talked to.
func systemdRules() bool {
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

// PrepareCgroup makes the cgroup under which pods are put and turns its controllers on, noting in the
// journal what it makes. It does nothing with the systemd driver, which makes slices when asked.
func PrepareCgroup(c Cgroup, root string, j *Journal) error {
	if m := c.Missing(); len(m) > 0 {
		return fmt.Errorf("the kernel offers no cgroup controller for %s; `umiak check` tells how to turn it on", strings.Join(m, ", "))
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
			// One by one: rt tasks keep cpu from being turned on in some set-ups, and the rest is still wanted.
			for _, n := range c.Controllers {
				if e := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+n), 0o644); e != nil && slices.Contains([]string{"cpu", "memory", "pids"}, n) {
					hint := ""
					if errors.Is(e, unix.EBUSY) {
						hint = ": processes live in this cgroup, which forbids it; move them to a cgroup below, or set cgroup-root to one without processes"
					}
					return fmt.Errorf("turn on cgroup controller %s in %s: %w%s", n, dir, e, hint)
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
			// A new v1 cpuset is empty, and nothing can run in it until it has been given cpus and memory.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if err := inheritCpuset(dir, f); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// hierarchiesV1 are the folders of all hierarchies of a machine with v1, the named one of systemd and the empty v2 of
// hybrid machines too: the kubelet wants its root in each v1, and runc makes it in the v2.
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

// ShimCgroup makes the cgroup in which shims are to live, noting it in the journal, and returns its name for
// containerd. Where systemd runs, shims would otherwise be members of umiak's unit, and `systemctl kill` sends
// its signal to all of them: without their shims, containers do not run on. Elsewhere it returns "".
func ShimCgroup(c Cgroup, root string, j *Journal) (string, error) {
	if !systemdRules() {
		return "", nil
	}
	return shimCgroup(CgroupMount, c, root, j)
}

func shimCgroup(mount string, c Cgroup, root string, j *Journal) (string, error) {
	dir := mount
	if c.Version == 1 {
		// The hierarchy by which systemd tells units apart; the controllers' own are left as they are. On
		// hybrid systems it tells them apart by an empty v2 beside v1, to which containerd cannot move a shim.
		dir = filepath.Join(mount, "systemd")
		_, hybrid := os.Stat(filepath.Join(mount, "unified"))
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || hybrid == nil {
			return "", nil
		}
	}
	if c.Driver == DriverSystemd {
		root = "/" // it is a slice, to which only systemd may add
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
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// PodCgroups are the cgroups that the kubelet makes below root for all pods, one a hierarchy.
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
