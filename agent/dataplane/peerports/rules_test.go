package peerports

import (
	"net/netip"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestRules compares the table, as nft lists it, with what it was when it was last looked at.
func TestRules(t *testing.T) {
	conn := nettest.Alone(t)
	r := Rules{Kubelet: 10250, VXLAN: true, Peers: []netip.Addr{netip.MustParseAddr("192.0.2.7"),
		netip.MustParseAddr("fd02::7")},
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}}
	nettest.Apply(t, conn, r.Table())
	golden.Equal(t, "testdata/rules.nft", nettest.NFT(t, "list table inet "+Table))
}
