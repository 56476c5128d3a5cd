package machine

import (
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
)

// Process is one process of the machine, as the host numbers it.
type Process struct {
	PID     int
	Start   string // tells it from a later process with the same number
	Args    []string
	Command string // the program's own name for itself
}

// Processes lists all processes of the machine, those in containers with pid namespaces of their own too.
func (m *Machine) Processes() []Process {
	// Containers have pid namespaces below the machine's; what they all share is the ancestor process 1.
	parent := map[int]int{}
	for pid := range allPIDs() {
		if f := stat(pid); f != nil {
			parent[pid], _ = strconv.Atoi(f[1])
		}
	}
	var out []Process
	for pid := range parent {
		up := pid
		for up > 1 && up != m.PID {
			up = parent[up]
		}
		if up != m.PID || pid == m.PID {
			continue
		}
		p := Process{PID: pid, Start: startOf(pid)}
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
