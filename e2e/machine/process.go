package machine

import (
	"fmt"
	"iter"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Process is one process of the machine, as the host numbers it.
type Process struct {
	PID     int
	Parent  int
	Start   string // tells it from a later process with the same number
	Args    []string
	Command string // the program's own name for itself
}

// Processes lists all processes of the machine, those in containers with pid namespaces of their own too.
func (m *Machine) Processes() []Process {
	if m.PID == 0 {
		return nil
	}
	var out []Process
	for _, p := range processesIn("pid", m.PID) {
		// Process 1 has a sleep of its own.
		if p.PID != m.init.pid && (p.Command != "sleep" || !slices.Equal(p.Args, []string{"sleep", "2147483647"})) {
			out = append(out, p)
		}
	}
	return out
}

// ProcessesInMountNamespaceOf lists what runs in the mount namespace of a process, without itself, and
// what descends from that: a cluster that has no machine.
func ProcessesInMountNamespaceOf(pid int) []Process { return processesIn("mnt", pid) }

// processesIn lists the processes in a namespace of a process, and their descendants, who may have gone on
// to namespaces of their own, but not the process itself.
func processesIn(space string, of int) []Process {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", of, space))
	if err != nil {
		return nil
	}
	parent, inside := map[int]int{}, map[int]bool{}
	for pid := range allPIDs() {
		f := stat(pid)
		if f == nil {
			continue
		}
		parent[pid], _ = strconv.Atoi(f[1])
		n, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, space))
		inside[pid] = err == nil && n == ns
	}
	var out []Process
	for pid := range parent {
		up := pid
		for up > 1 && !inside[up] {
			up = parent[up]
		}
		if !inside[up] || pid == of {
			continue
		}
		p := Process{PID: pid, Parent: parent[pid], Start: startOf(pid)}
		if p.Start == "" {
			continue
		}
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: no arguments
		p.Args = strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		p.Command = strings.TrimSpace(string(comm))
		out = append(out, p)
	}
	return out
}

// stat returns the fields of /proc/PID/stat behind the name: state, parent and so on.
func stat(pid int) []string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	s := string(raw)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return nil
	}
	return f
}

// CPUTime returns how much processor time a process has used, 0 if it is gone.
func CPUTime(pid int) time.Duration {
	f := stat(pid)
	if f == nil {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100) // USER_HZ
}

func allPIDs() iter.Seq[int] {
	return func(yield func(int) bool) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && !yield(pid) {
				return
			}
		}
	}
}
