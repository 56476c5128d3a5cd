package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one cgroup file system of the host: a v1 controller's, or v2.
type hierarchy struct {
	mount   string // where the host has it
	fstype  string // cgroup or cgroup2
	options string // with which it is mounted again inside
}

func (h hierarchy) v2() bool { return h.fstype == "cgroup2" }

// pure is true if all controllers are in v2, as opposed to the empty v2 beside v1 that hybrid systems have.
func (h hierarchy) pure() bool { return h.v2() && h.mount == "/sys/fs/cgroup" }

func (h hierarchy) group(id string) string { return filepath.Join(h.mount, "umiak-e2e-"+id) }

// hierarchies reads what the host has mounted.
func hierarchies() ([]hierarchy, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseHierarchies(string(raw)), nil
}

func parseHierarchies(mountinfo string) []hierarchy {
	var out []hierarchy
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 || r[0] != "cgroup" && r[0] != "cgroup2" {
			continue
		}
		h := hierarchy{mount: l[4], fstype: r[0], options: "rw"}
		if r[0] == "cgroup" {
			for o := range strings.SplitSeq(r[2], ",") {
				if strings.HasPrefix(o, "name=") {
					h.options += ",none"
				}
				if o != "rw" && o != "ro" {
					h.options += "," + o
				}
			}
		}
		out = append(out, h)
	}
	return out
}

// makeCgroups makes the machine's group in every hierarchy.
func makeCgroups(id string) ([]hierarchy, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, h := range hs {
		g := h.group(id)
		if err := os.Mkdir(g, 0o755); err != nil {
			return hs, fmt.Errorf("make cgroup: %w", err)
		}
		if h.pure() {
			err = errors.Join(delegate(h.mount), delegate(g), os.Mkdir(filepath.Join(g, "init"), 0o755))
		} else if _, e := os.Stat(filepath.Join(g, "cpuset.cpus")); e == nil {
			// A v1 cpuset starts empty and takes no process before it is filled.
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				v, e := os.ReadFile(filepath.Join(h.mount, f))
				err = errors.Join(err, e, os.WriteFile(filepath.Join(g, f), v, 0o644))
			}
		}
		if err != nil {
			return hs, fmt.Errorf("set up cgroup %s: %w", g, err)
		}
	}
	return hs, nil
}

// delegate gives the children of a v2 group all of its controllers.
func delegate(group string) error {
	raw, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var add []string
	for c := range strings.FieldsSeq(string(raw)) {
		add = append(add, "+"+c)
	}
	return os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(strings.Join(add, " ")), 0o644)
}

// joinCgroups makes a process that is forked by the thread on which join ran a member of the machine's
// groups: v1 is inherited from the thread, v2 is asked for at the fork.
func (m *Machine) joinCgroups(attr *syscall.SysProcAttr) (join func() error, release func(), err error) {
	release = func() {}
	for _, h := range m.cgroups {
		if !h.v2() {
			continue
		}
		g := h.group(m.ID)
		if h.pure() {
			g = filepath.Join(g, "init")
		}
		fd, err := unix.Open(g, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, release, fmt.Errorf("open %s: %w", g, err)
		}
		attr.UseCgroupFD, attr.CgroupFD = true, fd
		release = func() { _ = unix.Close(fd) }
	}
	return func() error {
		for _, h := range m.cgroups {
			if h.v2() {
				continue
			}
			if err := os.WriteFile(filepath.Join(h.group(m.ID), "tasks"), []byte("0"), 0o644); err != nil {
				return err
			}
		}
		return nil
	}, release, nil
}

// removeCgroup removes a group and all below it. Its processes are gone; the kernel may take a moment to
// notice, and there is no event for that in v1.
func removeCgroup(group string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for {
		var dirs []string
		err := filepath.WalkDir(group, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // what vanished meanwhile is what we want
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			if e := unix.Rmdir(dirs[i]); e != nil && !errors.Is(e, unix.ENOENT) {
				err = fmt.Errorf("remove cgroup %s: %w", dirs[i], e)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
