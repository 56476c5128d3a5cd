package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/internal/wallclock"
)

func privileges(context.Context, Config) []Result {
	if os.Geteuid() != 0 {
		return []Result{missing("privileges", "run it with sudo", "umiak needs to be root")}
	}
	caps, err := host.DetectCapabilities()
	if err != nil {
		return []Result{missing("privileges", "", "%v", err)}
	}
	var lack []string
	for _, name := range []string{host.CapNetAdmin, host.CapSysAdmin} {
		if !caps.Has(name) {
			lack = append(lack, name)
		}
	}
	switch {
	case len(lack) > 0:
		return []Result{missing("privileges", "give umiak all capabilities of root", "%s missing",
			strings.Join(lack, ", "))}
	case !caps.Has(host.CapSysResource):
		return []Result{warn("privileges", "give umiak CAP_SYS_RESOURCE if you can",
			"CAP_SYS_RESOURCE missing: umiak and guaranteed pods cannot be protected from the OOM killer")}
	}
	return []Result{ok("privileges", "root with all that is needed")}
}

func kernelVersion(context.Context, Config) []Result {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Result{missing("kernel", "", "%v", err)}
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := parseRelease(release)
	// nftables and nested overlayfs need 5.4; Kubernetes needs 4.19.
	if major < 5 || major == 5 && minor < 4 {
		return []Result{missing("kernel", "upgrade to 5.4 or later", "Linux %s", release)}
	}
	return []Result{ok("kernel", "Linux %s", release)}
}

func parseRelease(s string) (major, minor int) {
	a, rest, _ := strings.Cut(s, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	major, _ = strconv.Atoi(a)
	minor, _ = strconv.Atoi(b)
	return major, minor
}

func namespaces(context.Context, Config) []Result {
	var lack []string
	for _, n := range []string{"net", "mnt", "pid", "ipc", "uts", "cgroup"} {
		if _, err := os.Stat("/proc/self/ns/" + n); err != nil {
			lack = append(lack, n)
		}
	}
	if len(lack) > 0 {
		return []Result{missing("namespaces", "use a kernel built with CONFIG_NAMESPACES and all below it",
			"no %s namespaces", strings.Join(lack, ", "))}
	}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return []Result{warn("namespaces", "", "no user namespaces: pods with hostUsers: false cannot run")}
	}
	return []Result{ok("namespaces", "all there")}
}

func cgroups(_ context.Context, cfg Config) []Result {
	root := cfg.CgroupRoot
	if root == "" {
		root = "/"
	}
	c, err := host.DetectCgroup(root)
	if err != nil {
		return []Result{missing("cgroups", "mount cgroup2 at "+host.CgroupMount, "%v", err)}
	}
	if m := c.Missing(); len(m) > 0 {
		fix := "use a kernel with these controllers"
		if !c.Has("memory") {
			booted, _ := os.ReadFile("/proc/cmdline")
			file, lines := bootLine()
			fix = memoryFix(string(booted), file, lines)
		}
		return []Result{missing("cgroups", fix, "v%d, no controller for %s", c.Version, strings.Join(m, ", "))}
	}
	if err := host.TryCgroups(c, root); err != nil {
		return []Result{failed("cgroups", err)}
	}
	if c.Version == 1 {
		return []Result{warn("cgroups", "boot with systemd.unified_cgroup_hierarchy=1 if you can",
			"v1 (Kubernetes is about to give it up), driver %s", c.Driver)}
	}
	return []Result{ok("cgroups", "v2, driver %s", c.Driver)}
}

// bootLine returns the file with a Raspberry Pi's kernel command line, and its content.
func bootLine() (file, lines string) {
	for _, f := range []string{"/boot/firmware/cmdline.txt", "/boot/cmdline.txt"} {
		if raw, err := os.ReadFile(f); err == nil {
			return f, string(raw)
		}
	}
	return "", ""
}

// memoryFix says how to enable the memory controller, which Raspberry Pi OS disables by default, given the running
// kernel's command line and the file that it comes from, if any.
func memoryFix(booted, file, lines string) string {
	const option = "cgroup_enable=memory"
	first, _, _ := strings.Cut(lines, "\n")
	switch {
	case strings.Contains(booted, option):
		return "use a kernel with CONFIG_MEMCG: this one was booted with " + option + " and has no such controller"
	case file == "":
		return "add " + option + " to the kernel's command line and reboot"
	case strings.Contains(first, option):
		return "reboot: " + option + " is in " + file + ", and this kernel was booted before or from elsewhere"
	case strings.Contains(lines, option):
		return "make " + file + " one line, since " + option + " in another is not read, and reboot"
	}
	return "sed -i '1s/$/ " + option + " cgroup_memory=1/' " + file + " and reboot"
}

func memory(_ context.Context, cfg Config) []Result {
	total, available := meminfo()
	least := int64(256)
	if cfg.ServerPort != 0 {
		least = 512
	}
	switch {
	case total < least:
		return []Result{missing("memory", "use a larger machine", "%d MiB, %d are needed", total, least)}
	case available < least/2:
		return []Result{warn("memory", "", "%d of %d MiB available", available, total)}
	}
	return []Result{ok("memory", "%d of %d MiB available", available, total)}
}

// meminfo returns the machine's total and available memory in MiB.
func meminfo() (total, available int64) {
	raw, _ := os.ReadFile("/proc/meminfo")
	for _, l := range strings.Split(string(raw), "\n") {
		f := strings.Fields(l)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "MemTotal:":
			total = n >> 10
		case "MemAvailable:":
			available = n >> 10
		}
	}
	return total, available
}

func swap(context.Context, Config) []Result {
	on, err := host.SwapOn()
	if err != nil || !on {
		return []Result{ok("swap", "off")}
	}
	return []Result{ok("swap", "on; pods do not use it unless kubelet-arg says so")}
}

// overlay mounts an overlayfs on the file system that will hold the images.
func overlay(_ context.Context, cfg Config) []Result {
	const fix = "put data-dir on ext4 or xfs (with ftype=1), or set snapshotter: native"
	dir, remove, err := scratch(cfg.Dirs.Data)
	if err != nil {
		return []Result{missing("overlayfs", "", "%v", err)}
	}
	defer remove()
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return []Result{missing("overlayfs", "", "%v", err)}
		}
	}
	m := filepath.Join(dir, "m")
	opts := fmt.Sprintf("lowerdir=%s/l,upperdir=%s/u,workdir=%s/w", dir, dir, dir)
	if err := unix.Mount("overlay", m, "overlay", 0, opts); err != nil {
		if errors.Is(err, unix.ENODEV) {
			return []Result{missing("overlayfs", "use a kernel with overlayfs", "the kernel has none")}
		}
		return []Result{missing("overlayfs", fix, "not on the file system of %s: %v", cfg.Dirs.Data, err)}
	}
	defer unix.Unmount(m, unix.MNT_DETACH) //nolint:errcheck // removing the folder would fail
	if err := os.WriteFile(filepath.Join(m, "f"), nil, 0o600); err != nil {
		return []Result{missing("overlayfs", fix, "mounted, but cannot be written: %v", err)}
	}
	return []Result{ok("overlayfs", "works on the file system of %s", cfg.Dirs.Data)}
}

// scratch creates a temporary folder in dir or its nearest existing parent.
func scratch(dir string) (string, func(), error) {
	tmp, err := os.MkdirTemp(host.Existing(dir), ".umiak-check-")
	if err != nil {
		return "", nil, err
	}
	return tmp, func() { _ = os.RemoveAll(tmp) }, nil
}

func diskSpace(_ context.Context, cfg Config) []Result {
	// Other disks may be mounted below the data directory.
	for _, below := range []string{cfg.Dirs.Server(), cfg.Dirs.ServerPKI(), cfg.Dirs.DB(), cfg.Dirs.Agent()} {
		if err := host.TryDisk(below); err != nil && owner(cfg) == 0 {
			return []Result{failed("disk space", err)}
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(host.Existing(cfg.Dirs.Data), &st); err != nil {
		return []Result{failed("disk space", err)}
	}
	free := int64(st.Bavail) * int64(st.Bsize) >> 20 //nolint:unconvert // the size has 32 bits on arm
	percent := 100 * st.Bavail / max(st.Blocks, 1)
	switch {
	case free < 512:
		return []Result{missing("disk space", "make room, or set data-dir", "%d MiB free for %s", free, cfg.Dirs.Data)}
	case percent < 15:
		return []Result{warn(
			"disk space", "make room: unused images are removed above 85 % use, pods are evicted above 95 %",
			"%d MiB (%d %%) free for %s", free, percent, cfg.Dirs.Data)}
	}
	return []Result{ok("disk space", "%d MiB free for %s", free, cfg.Dirs.Data)}
}

func seccomp(context.Context, Config) []Result {
	if !host.HasSeccomp() {
		return []Result{warn("seccomp", "use a kernel with CONFIG_SECCOMP_FILTER",
			"the kernel has none: pods run without a filter of system calls")}
	}
	return []Result{ok("seccomp", "there")}
}

// inotifyInstances is how many inotify instances a node opens when it starts.
const inotifyInstances = 16

func inotify(_ context.Context, cfg Config) []Result {
	if err := host.TryInotify(inotifyInstances); err != nil && owner(cfg) == 0 {
		return []Result{failed("inotify", err)}
	}
	var low []string
	for name, least := range map[string]int{"fs.inotify.max_user_instances": 256,
		"fs.inotify.max_user_watches": 16384} {
		raw, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
		if n, _ := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && n < least {
			low = append(low, fmt.Sprintf("%s is %d, %d is better", name, n, least))
		}
	}
	if len(low) > 0 {
		return []Result{warn("inotify", "raise it in /etc/sysctl.d: with many pods, files stop being watched", "%s",
			strings.Join(low, "; "))}
	}
	return []Result{ok("inotify", "limits are high enough")}
}

func entropy(context.Context, Config) []Result {
	var b [1]byte
	if _, err := unix.Getrandom(b[:], unix.GRND_NONBLOCK); err != nil {
		return []Result{warn("randomness", "", "the kernel has not gathered enough yet; keys have to wait for it")}
	}
	return []Result{ok("randomness", "there")}
}

func clock(context.Context, Config) []Result {
	now := time.Now()
	if doubt := wallclock.Doubt(now); doubt != "" {
		return []Result{warn("clock", wallclock.Remedy, "%s", doubt)}
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0) {
		return []Result{warn("clock", "run systemd-timesyncd, chrony or another NTP client", "%s, not synchronised",
			now.Format(time.RFC3339))}
	}
	return []Result{ok("clock", "%s, synchronised", now.Format(time.RFC3339))}
}

func resolvers(context.Context, Config) []Result {
	f := resolver.Find("")
	if f.Remark != "" {
		return []Result{warn("name servers", "set resolv-conf, or wait: umiak follows the file", "%s", f.Remark)}
	}
	var s []string
	for _, a := range f.Pods {
		s = append(s, a.String())
	}
	return []Result{ok("name servers", "%s", strings.Join(s, ", "))}
}

// others looks for software that conflicts with umiak.
func others(context.Context, Config) []Result {
	var out []Result
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err != nil {
			continue
		}
		if a, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err != nil || a != ownNetns() {
			continue // in another network namespace: no conflict
		}
		comm := strings.TrimSpace(string(raw))
		switch comm {
		case "kubelet", "k3s-server", "k3s-agent", "k3s", "k0s", "rke2", "kube-proxy":
			out = append(out, warn("other software", "stop it: two of them on one machine change each other's rules",
				"%s runs here (process %s)", comm, e.Name()))
		case "firewalld":
			out = append(
				out, warn("other software",
					"systemctl disable --now firewalld, or add the pods' and Services' ranges to its trusted zone",
					"firewalld runs here"))
		}
	}
	if raw, err := os.ReadFile("/etc/ufw/ufw.conf"); err == nil && strings.Contains(string(raw), "ENABLED=yes") {
		out = append(out, warn("other software",
			"ufw disable, or: ufw default allow routed, ufw allow 6443/tcp, ufw allow 8472/udp", "ufw is on"))
	}
	if len(out) == 0 {
		out = append(out, ok("other software", "nothing that gets in the way"))
	}
	return out
}

func ownNetns() string {
	s, _ := os.Readlink("/proc/self/ns/net")
	return s
}
