package tunnel

import (
	"net/netip"
	"slices"
	"testing"
)

func allow() Allow {
	return Allow{
		Node: "n1", Kubelet: netip.MustParseAddrPort("127.0.0.1:10250"),
		PodRanges: func() []netip.Prefix {
			return []netip.Prefix{netip.MustParsePrefix("10.42.1.0/24"), netip.MustParsePrefix("fd42:1::/64")}
		},
		Addresses: func() ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.42.1.1"),
				netip.MustParseAddr("fd42:1::1")}, nil
		},
	}
}

func TestWhatServersMayReach(t *testing.T) {
	const kubelet, no = "127.0.0.1:10250", ""
	for asked, want := range map[string]string{
		"n1:10250": kubelet, "N1:10250": kubelet, "192.0.2.7:10250": kubelet, "127.0.0.1:10250": kubelet,
		"[::1]:10250":              kubelet,
		"[::ffff:192.0.2.7]:10250": kubelet, "10.42.1.1:10250": kubelet,
		"10.42.1.5:80": "10.42.1.5:80", "[fd42:1::5]:8443": "[fd42:1::5]:8443", "[::ffff:10.42.1.5]:80": "10.42.1.5:80",

		"n1:22": no, "n2:10250": no, "localhost:10250": no, "127.0.0.1:22": no, "192.0.2.7:22": no,
		"192.0.2.8:10250": no,
		"10.42.1.1:22":    no, "10.42.2.5:80": no, "10.42.1.5:0": no, "10.42.1.5": no, "10.42.1.5:http": no,
		"10.42.1.5:65536": no,
		"10.42.1.5:+80":   no, "[fd42:2::5]:80": no, "[fe80::1%eth0]:80": no, "[fd42:1::5%1]:80": no,
		"169.254.169.254:80": no, "0.0.0.0:10250": no, "": no, ":10250": no,
	} {
		got, err := allow().Target(asked)
		if got != want || (err == nil) != (want != no) {
			t.Errorf("%q: got %q, %v; want %q", asked, got, err, want)
		}
	}
	a := allow()
	a.PodRanges = func() []netip.Prefix { return nil }
	if _, err := a.Target("10.42.1.5:80"); err == nil {
		t.Error("pods are allowed before their range is known")
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"n1:10250", "10.42.1.5:80", "[fd42:1::5]:8443", "10.42.1.1:22", "[::ffff:10.42.1.1]:22",
		"127.0.0.1:10250", "x"} {
		f.Add(s)
	}
	a := allow()
	own, _ := a.Addresses()
	f.Fuzz(func(t *testing.T, asked string) {
		got, err := a.Target(asked)
		if err != nil {
			return
		}
		at, perr := netip.ParseAddrPort(got)
		if perr != nil {
			t.Fatalf("%q leads to %q", asked, got)
		}
		if at == a.Kubelet {
			return
		}
		if slices.Contains(own, at.Addr().Unmap()) ||
			!slices.ContainsFunc(a.PodRanges(), func(p netip.Prefix) bool { return p.Contains(at.Addr()) }) {
			t.Fatalf("%q leads to %s", asked, got)
		}
	})
}
