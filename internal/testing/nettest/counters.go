package nettest

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// SentAgain returns the number of SYN packets that the host has sent again because no answer arrived within a second.
// It shows lost packets on a machine that is not too busy to answer within that time.
func (h *Host) SentAgain(t testing.TB) int {
	t.Helper()
	all := map[string]int{}
	h.count(t, all, "netstat")
	return all["TcpExt:TCPSynRetrans"]
}

// Counters returns the kernel's counters of the host, such as "Tcp:InErrs" and "conntrack:insert_failed", which show
// where packets were lost.
func (h *Host) Counters(t testing.TB) map[string]int {
	t.Helper()
	all := map[string]int{}
	for _, file := range []string{"snmp", "netstat", "stat/nf_conntrack"} {
		h.count(t, all, file)
	}
	return all
}

// count adds the counters in a file below /proc/net.
func (h *Host) count(t testing.TB, all map[string]int, file string) {
	t.Helper()
	var raw []byte
	var err error
	h.Do(func() { raw, err = os.ReadFile("/proc/thread-self/net/" + file) })
	h.Must(t, err)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	if file == "stat/nf_conntrack" { // one line of names, then a line of hexadecimal values per CPU
		for _, values := range lines[1:] {
			h.Must(t, add(all, "conntrack:", lines[0], values, 16))
		}
		return
	}
	for pair := range slices.Chunk(lines, 2) { // a line of names and a line of values, both with the group first
		group, names, _ := strings.Cut(pair[0], " ")
		_, values, _ := strings.Cut(pair[1], " ")
		h.Must(t, add(all, group, names, values, 10))
	}
}

// add adds a line of values to the counters.
func add(all map[string]int, group, names, values string, base int) error {
	v := strings.Fields(values)
	for i, name := range strings.Fields(names) {
		n, err := strconv.ParseInt(v[i], base, 64)
		if err != nil {
			return fmt.Errorf("count %s%s: %w", group, name, err)
		}
		all[group+name] += int(n)
	}
	return nil
}

// Since returns the counters that have changed since before, as text.
func (h *Host) Since(t testing.TB, before map[string]int) string {
	t.Helper()
	var out []string
	for name, n := range h.Counters(t) {
		if n != before[name] {
			out = append(out, fmt.Sprintf("%s %d", name, n-before[name]))
		}
	}
	slices.Sort(out)
	return h.Name + ": " + strings.Join(out, ", ")
}
