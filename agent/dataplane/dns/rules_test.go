package dns

import (
	"net/netip"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestRules compares the table, as nft lists it, with what it was when it was last looked at.
func TestRules(t *testing.T) {
	for name, l := range map[string]layout{
		"pods":      {podInterface: "cni0", limits: defaultLimits},
		"unlimited": {},
		"endpoints": {podInterface: "cni0", endpoints: true, nodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"),
			netip.MustParseAddr("fd02::1")}},
	} {
		t.Run(name, func(t *testing.T) {
			conn := nettest.Alone(t)
			l.addrs, l.port = []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")}, firstPort
			nettest.Apply(t, conn, l.table())
			golden.Equal(t, "testdata/rules-"+name+".nft", nettest.NFT(t, "list table inet "+Table))
		})
	}
}
