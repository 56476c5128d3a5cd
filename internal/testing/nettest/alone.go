package nettest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
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
