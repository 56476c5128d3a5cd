package pki

import (
	"net/netip"
	"slices"
	"testing"
)

func TestSANIsANameOrAnAddress(t *testing.T) {
	for text, want := range map[string]SAN{
		"pi.local": {Name: "pi.local"}, "*.example.com": {Name: "*.example.com"}, "my_host": {Name: "my_host"},
		"10.0.0.1": {Addr: netip.MustParseAddr("10.0.0.1")}, "fd00::1": {Addr: netip.MustParseAddr("fd00::1")},
		"::ffff:10.0.0.1": {Addr: netip.MustParseAddr("10.0.0.1")},
	} {
		var got SAN
		if err := got.UnmarshalText([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		var again SAN
		if raw, err := got.MarshalText(); err != nil || again.UnmarshalText(raw) != nil || again != got {
			t.Errorf("%s: written as %s, %v", text, raw, err)
		}
	}
	for _, text := range []string{"", "https://x:6443", "a b", "münchen.local", "10.0.0.1:6443"} {
		if err := new(SAN).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestServingHasEachAddressOnce(t *testing.T) {
	s := Serving{Domain: "c.local", SANs: []SAN{{Name: "pi.local"}, {Addr: netip.MustParseAddr("198.51.100.7")}},
		Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}, Bind: netip.MustParseAddr("0.0.0.0")}
	want := []string{"127.0.0.1", "::1", "192.0.2.1", "10.43.0.1", "198.51.100.7"}
	if got := s.IPs("", "192.0.2.1", "192.0.2.1", "127.0.0.1"); !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if got := s.Names(); !slices.Contains(got, "pi.local") || !slices.Contains(got, "kubernetes.default.svc.c.local") ||
		slices.Contains(got, "198.51.100.7") {
		t.Errorf("names %v", got)
	}
}
