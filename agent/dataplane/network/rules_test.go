package network

import (
	"net/netip"
	"testing"

	"github.com/umiak-io/umiak/internal/testing/golden"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestRules compares the table, as nft lists it, with what it was when it was last looked at.
func TestRules(t *testing.T) {
	for name, pods := range map[string][]netip.Prefix{
		"none": nil,
		"pods": {netip.MustParsePrefix("10.42.3.0/24"), netip.MustParsePrefix("fd42::3:0/112")},
	} {
		t.Run(name, func(t *testing.T) {
			nettest.Apply(t, nettest.Alone(t), rules(pods,
				[]netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}, true))
			golden.Equal(t, "testdata/rules-"+name+".nft", nettest.NFT(t, "list table inet "+Table))
		})
	}
}
