package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prometheus/procfs"

	"github.com/umiak-io/umiak/internal/listing"
)

// inode identifies a file, directory or namespace, whatever its path.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return inode{}, err
	}
	return inode{st.Dev, st.Ino}, nil
}

// maxRounds bounds how often stopPods looks for processes that have appeared meanwhile.
const maxRounds = 50

// stopPods kills this node's shims, their descendants, and the processes in the pods' cgroups. It records the network
// namespaces of killed processes.
func (c *cleaner) stopPods(ctx context.Context) error {
	c.netns = map[inode]bool{}
	self, err := inodeOf("/proc/self/ns/net")
	if err != nil {
		return err
	}
	// New processes may appear meanwhile (a shim starts a probe's exec): repeat until there are none.
	var left []int
	for range maxRounds {
		pids, err := c.pods()
		if err != nil {
			return err
		}
		if left = pids; len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if ns, err := inodeOf(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && ns != self {
				c.netns[ns] = true
			}
		}
		if err := c.kill(ctx, pids); err != nil {
			return err
		}
	}
	return fmt.Errorf("kill processes: others appear as fast as they are killed: %v", left)
}

// pods returns the processes of this node's pods: shims first, then their descendants, then the others in the pods'
// cgroups.
func (c *cleaner) pods() ([]int, error) {
	bundles := map[inode]bool{}
	for _, name := range []string{"io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"} {
		dirs, err := listing.Match(filepath.Join(c.Dirs.ContainerdState(), name), "*", "*")
		if err != nil {
			return nil, err
		}
		for _, d := range dirs {
			if i, err := inodeOf(d); err == nil {
				bundles[i] = true
			}
		}
	}
	procs, err := processes()
	if err != nil {
		return nil, err
	}
	seen := map[int]bool{}
	var out []int
	add := func(pid int) {
		if !seen[pid] && pid > 1 && pid != os.Getpid() {
			seen[pid] = true
			out = append(out, pid)
		}
	}
	for pid, p := range procs {
		if !strings.HasPrefix(filepath.Base(p.argv0), "containerd-shim") {
			continue
		}
		if cwd, err := inodeOf(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && bundles[cwd] {
			add(pid)
		} else if slices.Contains(p.argv, c.Dirs.ContainerdSocket()) && sameNamespace(pid, "mnt") {
			add(pid) // its bundle has been removed manually
		}
	}
	// A shim is a subreaper: orphans of its containers become its children, so the tree below it is complete.
	for i := 0; i < len(out); i++ {
		for pid, p := range procs {
			if p.parent == out[i] {
				add(pid)
			}
		}
	}
	for _, dir := range c.podCgroups() {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				raw, _ := os.ReadFile(path)
				for _, f := range strings.Fields(string(raw)) {
					if pid, err := strconv.Atoi(f); err == nil {
						add(pid)
					}
				}
			}
			return nil
		})
	}
	return out, nil
}

type process struct {
	parent int
	argv0  string
	argv   []string
}

func processes() (map[int]process, error) {
	all, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	out := map[int]process{}
	for _, p := range all {
		stat, err := p.Stat()
		if err != nil || stat.State == "Z" {
			continue // it has ended
		}
		argv, _ := p.CmdLine()
		one := process{parent: stat.PPID, argv: argv}
		if len(argv) > 0 {
			one.argv0 = argv[0]
		}
		out[p.PID] = one
	}
	return out, nil
}

func sameNamespace(pid int, kind string) bool {
	a, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	b, err2 := os.Readlink("/proc/self/ns/" + kind)
	return err == nil && err2 == nil && a == b
}

// killTimeout bounds the end of processes after SIGKILL: one that waits for a disk or a network file system that does
// not answer lives on.
const killTimeout = 30 * time.Second

// target is a process to kill.
type target struct {
	pid  int
	name string
	fd   int // pidfd
}

// String returns the process as errors and lines name it.
func (t target) String() string { return fmt.Sprintf("%d (%s)", t.pid, t.name) }

// kill kills the processes and waits until they have ended. It returns an error that names those which live on after
// killTimeout.
func (c *cleaner) kill(ctx context.Context, pids []int) error {
	var all []target
	defer func() {
		for _, t := range all {
			_ = unix.Close(t.fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		t := target{pid, string(bytes.TrimSpace(name)), fd}
		all = append(all, t)
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %s: %w", t, err)
		}
		c.printf("killed process %s", t)
	}
	living, err := awaitEnd(ctx, all, killTimeout)
	if err != nil {
		return err
	}
	if len(living) > 0 {
		return fmt.Errorf("these processes live on %s after they were killed, as those do that wait for a disk or a network "+
			"file system: %v; make that answer, or restart the machine, then run this again", killTimeout, living)
	}
	return nil
}

// awaitEnd waits until the processes have ended, at most timeout in all, and returns those that have not.
func awaitEnd(ctx context.Context, all []target, timeout time.Duration) (living []target, err error) {
	const slice = 200 // ms: how long poll(2) may ignore the end of ctx
	deadline := time.Now().Add(timeout)
	for _, t := range all {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}, slice)
			if n > 0 {
				break
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return nil, fmt.Errorf("wait for process %s: %w", t, err)
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if !time.Now().Before(deadline) {
				living = append(living, t)
				break
			}
		}
	}
	return living, nil
}
