package nettest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Alone puts the test into a network namespace of its own, which ends with the test's thread, and opens a
// socket to nf_tables there.
func Alone(t testing.TB) *netfilter.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	c, err := netfilter.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Netfilter opens a socket to nf_tables in the namespace. It is closed when the test ends.
func (h *Host) Netfilter(t testing.TB) *netfilter.Conn {
	t.Helper()
	var c *netfilter.Conn
	var err error
	h.Do(func() { c, err = netfilter.Dial() })
	h.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// NFT runs the nft program in the namespace of the calling thread, as a stranger would who changes tables,
// and returns what it prints.
func NFT(t testing.TB, args string) string {
	t.Helper()
	out, err := exec.Command("nft", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v %s", args, err, out)
	}
	return string(out)
}

// Apply writes a table through a socket to nf_tables.
func Apply(t testing.TB, conn *netfilter.Conn, want ruleset.Table) {
	t.Helper()
	table := netfilter.Table{Conn: conn, Family: want.Family, Name: want.Name}
	if _, err := table.Reconcile(t.Context(), netfilter.Static(want)); err != nil {
		t.Fatal(err)
	}
}
