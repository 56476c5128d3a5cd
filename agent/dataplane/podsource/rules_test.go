package podsource

import (
	"net"
	"net/netip"
	"regexp"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestRules compares the table, as nft lists it, with what it was when it was last looked at.
func TestRules(t *testing.T) {
	nettest.Alone(t)
	p := Pod{Interface: "lo", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.5"), netip.MustParseAddr("fd42::5")}}
	if err := Check(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	out := nettest.NFT(t, "list table netdev "+Table)
	golden.Equal(t, "testdata/rules.nft", regexp.MustCompile(`lo\.[0-9a-f]{12}`).ReplaceAllString(out, "lo.DIGEST"))
}
