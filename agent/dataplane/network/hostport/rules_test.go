package hostport

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestRules compares the table, as nft lists it, with what it was when it was last looked at.
func TestRules(t *testing.T) {
	nettest.Alone(t)
	v4, v6 := netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("fd42::5")
	if err := install(t.Context(), "aaaa", []mapping{
		{proto: unix.IPPROTO_TCP, hostPort: 80, pod: v4, podPort: 8080},
		{proto: unix.IPPROTO_UDP, host: netip.MustParseAddr("192.0.2.1"), hostPort: 80, pod: v4, podPort: 8080},
		{proto: unix.IPPROTO_TCP, hostPort: 80, pod: v6, podPort: 8080},
	}); err != nil {
		t.Fatal(err)
	}
	golden.Equal(t, "testdata/rules.nft", nettest.NFT(t, "list table inet "+Table))
}
