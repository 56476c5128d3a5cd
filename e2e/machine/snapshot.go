package machine

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// Snapshot is the state of a machine outside of the folders that a test excludes: what a program that
// cleans up after itself has to leave as it was. Keys name the kind of thing.
type Snapshot map[string][]string

// sysctls are those that a node is known to set.
var sysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes",
	"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/all/route_localnet",
	"net/ipv4/conf/all/rp_filter",
	"net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables",
	"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_tcp_timeout_established",
}

// Snapshot reads the state. Files below the excluded folders are not listed.
func (m *Machine) Snapshot(ctx context.Context, exclude ...string) (Snapshot, error) {
	s := Snapshot{}
	var err error
	add := func(kind string, lines []string, e error) {
		slices.Sort(lines)
		s[kind] = lines
		if e != nil && err == nil {
			err = fmt.Errorf("read %s: %w", kind, e)
		}
	}
	add("processes", m.processes(), nil)
	addNetwork(ctx, m.PID, add)
	var groups []string
	var e error
	for _, h := range m.cgroups {
		e = filepath.WalkDir(h.group(m.ID), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				groups = append(groups, p)
			}
			return nil
		})
	}
	add("cgroups", groups, e)
	var mounts, files, values []string
	e = m.Do(func() error {
		raw, err := os.ReadFile("/proc/1/mountinfo")
		mounts = mountLines(string(raw))
		for _, k := range sysctls {
			if v, err := os.ReadFile("/proc/sys/" + k); err == nil {
				values = append(values, k+" = "+strings.Join(strings.Fields(string(v)), " "))
			}
		}
		for _, root := range []string{"/etc", "/opt", "/run", "/var/lib", "/var/log", filepath.Join(m.Dir, "tmp")} {
			files = append(files, paths(root, exclude)...)
		}
		return err
	})
	add("mounts", mounts, e)
	add("files", files, nil)
	add("sysctls", values, nil)
	return s, err
}

// addNetwork adds rules, links, addresses and routes of the network namespace of a process.
func addNetwork(ctx context.Context, pid int, add func(kind string, lines []string, err error)) {
	// The host's own nft, for a machine need not have one.
	ruleset, err := exec.CommandContext(ctx, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", pid), "nft", "list",
		"ruleset").Output()
	add("nftables", slices.Collect(strings.Lines(string(ruleset))), err)
	var links, addrs, routes []string
	err = withNetlink(pid, func(nl *netlink.Handle) error {
		ls, err := nl.LinkList()
		if err != nil {
			return err
		}
		name := map[int]string{}
		for _, l := range ls {
			name[l.Attrs().Index] = l.Attrs().Name
			links = append(links, l.Type()+" "+l.Attrs().Name+" "+l.Attrs().OperState.String())
		}
		as, err := nl.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range as {
			addrs = append(addrs, a.IPNet.String()+" "+name[a.LinkIndex])
		}
		rs, err := nl.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range rs {
			routes = append(routes, fmt.Sprintf("%v via %v dev %s", r.Dst, r.Gw, name[r.LinkIndex]))
		}
		return nil
	})
	add("links", links, err)
	add("addresses", addrs, nil)
	add("routes", routes, nil)
}

// mountLines are type and place of each mount of a mountinfo.
func mountLines(mountinfo string) []string {
	var out []string
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(line, " - ")
		if l, r := strings.Fields(left), strings.Fields(right); len(l) > 4 && len(r) > 0 {
			out = append(out, r[0]+" "+l[4])
		}
	}
	return out
}

// paths lists what is below a folder, without the excluded folders and what is in them.
func paths(root string, exclude []string) []string {
	var out []string
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if slices.Contains(exclude, p) {
			return fs.SkipDir
		}
		if err == nil {
			out = append(out, p)
		}
		return nil
	})
	return out
}

// processes lists what runs in the machine's pid namespace except for its process 1.
func (m *Machine) processes() []string {
	var out []string
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.PID))
	if err != nil {
		return nil
	}
	for pid := range allPIDs() {
		if n, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || n != ns || pid == m.PID {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		line := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
		if err != nil || line == "sleep 2147483647" { // process 1 has one of these
			continue
		}
		out = append(out, line)
	}
	return out
}

// Diff lists what is in after and not in s, with +, and the other way round, with -.
func (s Snapshot) Diff(after Snapshot) []string {
	var out []string
	kinds := slices.Sorted(maps.Keys(s))
	for _, k := range kinds {
		before := map[string]int{}
		for _, l := range s[k] {
			before[l]++
		}
		for _, l := range after[k] {
			if before[l]--; before[l] < 0 {
				out = append(out, "+ "+k+": "+strings.TrimRight(l, "\n"))
			}
		}
		for _, l := range s[k] {
			if before[l] > 0 {
				before[l]--
				out = append(out, "- "+k+": "+strings.TrimRight(l, "\n"))
			}
		}
	}
	return out
}
