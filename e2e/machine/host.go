package machine

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// volatileSysctls change by themselves, or belong to an interface, which the list of links shows.
var volatileSysctls = regexp.MustCompile(`^(fs/(dentry-state|inode-nr|inode-state|file-nr|quota/|aio-nr|inotify/|epoll/|binfmt_misc/)|kernel/(random/|ns_last_pid|pty/nr|hostname|perf_|sched_domain|tainted|threads-max)|net/(ipv[46]/(conf|neigh)/|netfilter/nf_conntrack_count|ipv4/tcp_fastopen_key)|vm/stat_refresh|user/)`)

// HostSnapshot reads the state of the machine that this process runs on, as Machine.Snapshot does: all that a program
// which cleans up after itself has to leave as it was. Machines of this package are no part of it. Processes and
// cgroups are those of containers and of programs below one of the folders, since others come and go. Files of the
// excluded folders are not listed.
func HostSnapshot(ctx context.Context, programs, exclude []string) (Snapshot, error) {
	s := Snapshot{}
	var err error
	add := func(kind string, lines []string, e error) {
		slices.Sort(lines)
		s[kind] = lines
		if e != nil && err == nil {
			err = fmt.Errorf("read %s: %w", kind, e)
		}
	}
	add("processes", hostProcesses(programs), nil)
	addNetwork(ctx, os.Getpid(), add)
	hs, e := hierarchies()
	var groups []string
	for _, h := range hs {
		entries, err := os.ReadDir(h.mount)
		for _, d := range entries {
			if d.IsDir() && !strings.HasPrefix(d.Name(), filepath.Base(h.group(""))) {
				groups = append(groups, filepath.Join(h.mount, d.Name()))
			}
		}
		if err != nil && e == nil {
			e = err
		}
	}
	add("cgroups", groups, e)
	raw, e := os.ReadFile("/proc/self/mountinfo")
	var mounts []string
	for _, m := range mountLines(string(raw)) {
		_, at, _ := strings.Cut(m, " ")
		if !slices.ContainsFunc(exclude, func(x string) bool { return strings.HasPrefix(at+"/", x+"/") }) {
			mounts = append(mounts, m)
		}
	}
	add("mounts", mounts, e)
	values, e := hostSysctls()
	add("sysctls", values, e)
	var files []string
	for _, root := range []string{"/boot", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/usr/local",
		"/var"} {
		files = append(files, paths(root, exclude)...)
	}
	add("files", files, nil)
	return s, err
}

// hostSysctls reads all that can be read, with their values.
func hostSysctls() ([]string, error) {
	var out []string
	err := filepath.WalkDir("/proc/sys", func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, "/proc/sys/")
		if err != nil || d.IsDir() || volatileSysctls.MatchString(name) {
			return nil
		}
		if v, err := os.ReadFile(p); err == nil {
			out = append(out, name+" = "+strings.Join(strings.Fields(string(v)), " "))
		}
		return nil
	})
	return out, err
}

// hostProcesses lists programs from one of the folders in this pid namespace, and what is in a pod's cgroup that lies
// where a node without a cgroup of its own has it.
func hostProcesses(folders []string) []string {
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil
	}
	var out []string
	for pid := range allPIDs() {
		dir := fmt.Sprintf("/proc/%d/", pid)
		groups, _ := os.ReadFile(dir + "cgroup")
		ours := strings.Contains(string(groups), ":/kubepods")
		if ns, err := os.Readlink(dir + "ns/pid"); err == nil && ns == own {
			exe, _ := os.Readlink(dir + "exe")
			ours = ours || slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(exe, f+"/") })
		}
		if !ours || pid == os.Getpid() {
			continue
		}
		if raw, err := os.ReadFile(dir + "cmdline"); err == nil {
			out = append(out, strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " ")))
		}
	}
	return out
}
