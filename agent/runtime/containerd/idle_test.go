package containerd_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

var idle = flag.Duration("idle", 0, "how long TestIdle measures; 0 leaves it out")

// TestIdle reports what containerd and a shim cost while nothing happens.
func TestIdle(t *testing.T) {
	if *idle == 0 {
		t.Skip("measures only when asked: -idle 1m")
	}
	n := newNode(t)
	n.start()
	c := n.client()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n.putArchive("box.tar")
	eventually.True(t, "the archive is imported", func() bool { return c.hasImage(ctx, testImage) != nil })
	n.pod(ctx, c, "a", cri.NamespaceMode_NODE)
	n.pod(ctx, c, "b", cri.NamespaceMode_NODE)
	// nsenter has become containerd: it does not fork.
	main := n.proc.Process.Pid
	var shims []int
	for _, pid := range n.processes() {
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if strings.HasSuffix(exe, "containerd-shim-runc-v2") {
			shims = append(shims, pid)
		}
	}
	time.Sleep(10 * time.Second) // the start is over
	ticks := func(pid int) (n int) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		var u, s int
		_, _ = fmt.Sscan(f[11], &u)
		_, _ = fmt.Sscan(f[12], &s)
		return u + s
	}
	before := map[int]int{}
	for _, pid := range append(shims, main) {
		before[pid] = ticks(pid)
	}
	time.Sleep(*idle)
	for _, pid := range append(shims, main) {
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		fields := map[string]string{}
		for _, l := range strings.Split(string(rollup), "\n") {
			k, v, _ := strings.Cut(l, ":")
			fields[k] = strings.TrimSpace(v)
		}
		name := "shim"
		if pid == main {
			name = "containerd"
		}
		t.Logf("%-10s %.3f CPU s/min, anonymous %s, PSS %s, RSS %s", name,
			float64(ticks(pid)-before[pid])/100/idle.Minutes(), fields["Anonymous"], fields["Pss"], fields["Rss"])
	}
}
