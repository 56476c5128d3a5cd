package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// usage is what one process, or several of one name, take: KiB, seconds, bytes.
type usage struct {
	name                         string
	pss, rss, anon, cpu, written float64
}

func (u *usage) add(o usage) {
	u.pss, u.rss, u.anon, u.cpu, u.written = u.pss+o.pss, u.rss+o.rss, u.anon+o.anon, u.cpu+o.cpu, u.written+o.written
}

// since is memory as it is now, and what was used of the rest after an earlier moment.
func (u usage) since(b usage) usage {
	u.cpu -= b.cpu
	u.written -= b.written
	return u
}

// usageOf reads the processes of a stack, by number and start.
func usageOf(s stack) map[string]usage {
	out := map[string]usage{}
	for _, p := range s.processes() {
		u := usage{name: nameOf(p.Args, p.Command)}
		dir := fmt.Sprintf("/proc/%d/", p.PID)
		roll := pairs(dir + "smaps_rollup")
		if len(roll) == 0 {
			continue // it is gone
		}
		u.pss, u.rss, u.anon = roll["Pss"], roll["Rss"], roll["Anonymous"]
		u.written = pairs(dir + "io")["write_bytes"]
		raw, err := os.ReadFile(dir + "stat")
		if err != nil {
			continue
		}
		f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		for _, i := range []int{11, 12, 13, 14} { // its own time and that of children it has waited for
			n, _ := strconv.ParseFloat(f[i], 64)
			u.cpu += n / 100
		}
		out[fmt.Sprint(p.PID, "/", p.Start)] = u
	}
	return out
}

// pairs reads lines of "name: number".
func pairs(file string) map[string]float64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(raw)) {
		k, v, _ := strings.Cut(line, ":")
		if f := strings.Fields(v); len(f) > 0 {
			if n, err := strconv.ParseFloat(f[0], 64); err == nil {
				out[k] = n
			}
		}
	}
	return out
}

func nameOf(args []string, command string) string {
	n := command
	if len(args) > 0 && args[0] != "" {
		n = filepath.Base(args[0])
	}
	if strings.HasPrefix(n, "containerd-shim") {
		n = "containerd-shim"
	}
	return strings.TrimSuffix(n, ":")
}

// workload says whether a process is a user's, and so does not count.
func workload(name string) bool {
	switch name {
	case "busybox", "httpd", "sleep", "sh":
		return true
	}
	return false
}
