package advertise

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAddressesThatPodsCannotReachAreRefused(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "0.0.0.0", "::1", "fe80::1", "224.0.0.1"} {
		if _, err := Choose(netip.MustParseAddr(a), nil, nil); err == nil ||
			!strings.Contains(err.Error(), "advertise-address") {
			t.Errorf("%s: %v", a, err)
		}
	}
	if a, err := Choose(netip.Addr{}, nil, []netip.Addr{netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("2001:db8::1")}); err != nil || a != "192.0.2.1" {
		t.Errorf("got %s, %v", a, err)
	}
	if _, err := Choose(netip.Addr{}, nil, nil); err == nil || !strings.Contains(err.Error(), "set node-ip") {
		t.Errorf("got %v", err)
	}
}
