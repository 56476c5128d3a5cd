package nodeip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

// list reads addresses; those that belong to a default route have a * behind them, and @ separates the interface, which
// is a virtual one if its name begins with w.
func list(text string) []address {
	var out []address
	for _, f := range strings.Fields(text) {
		f, name, _ := strings.Cut(f, "@")
		ip, routed := strings.CutSuffix(f, "*")
		out = append(out, address{IP: netip.MustParseAddr(ip), Routed: routed, Interface: name,
			virtual: strings.HasPrefix(name, "w")})
	}
	return out
}

func TestChoose(t *testing.T) {
	four, six, both := Families{V4: true}, Families{V6: true}, Families{V4: true, V6: true}
	for _, c := range []struct {
		name             string
		want             Families
		asked            string
		kept, have       string
		ips, missing, at string // at: what is written down
	}{
		{name: "the default route's", want: four, have: "10.0.0.5* 172.16.0.1", ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "no default route", want: four, have: "10.0.0.5 fd00::5", ips: "10.0.0.5", at: "10.0.0.5"},
		{name: "nothing yet", want: four, have: "fd00::5*"},
		{name: "no cable at boot", want: four, kept: "10.0.0.5*", ips: "10.0.0.5", missing: "10.0.0.5",
			at: "10.0.0.5*"},
		{name: "the default route has gone", want: four, kept: "10.0.0.5*", have: "10.0.0.5 172.16.0.1",
			ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "another default route beside it", want: four, kept: "10.0.0.5*", have: "192.168.0.9* 10.0.0.5",
			ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "a default route at last", want: four, kept: "172.16.0.1", have: "192.168.0.9* 172.16.0.1",
			ips: "192.168.0.9", at: "192.168.0.9*"},
		{name: "another address", want: four, kept: "10.0.0.5*", have: "10.0.0.77*", ips: "10.0.0.77",
			at: "10.0.0.77*"},
		{name: "two families", want: both, have: "10.0.0.5* fd00::5*", ips: "10.0.0.5 fd00::5",
			at: "10.0.0.5* fd00::5*"},
		{name: "two families, one there", want: both, have: "10.0.0.5*", ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "two families, one kept", want: both, kept: "fd00::5*", have: "10.0.0.5*", ips: "10.0.0.5 fd00::5",
			missing: "fd00::5", at: "10.0.0.5* fd00::5*"},
		{name: "IPv6 alone", want: six, have: "fd00::5", ips: "fd00::5", at: "fd00::5"},
		{name: "IPv6 is not wanted", want: four, have: "10.0.0.5* fd00::5*", ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "node-ip", want: both, asked: "fd00::7 10.0.0.7", kept: "10.0.0.5*", have: "10.0.0.5* fd00::7",
			ips: "fd00::7 10.0.0.7", missing: "10.0.0.7"},
		{name: "an interface", want: both, asked: "eth1", have: "10.0.0.5*@eth0 10.1.0.5@eth1 fd01::5@eth1",
			ips: "10.1.0.5 fd01::5", at: "10.1.0.5@eth1 fd01::5@eth1"},
		{name: "a VPN's interface", want: four, asked: "wt0", have: "10.0.0.5*@eth0 100.64.0.5@wt0", ips: "100.64.0.5",
			at: "100.64.0.5@wt0"},
		{name: "no VPN unless it is named", want: four, have: "100.64.0.5@wt0"},
		{name: "an interface that has lost its address", want: four, asked: "eth1", kept: "10.1.0.5@eth1",
			have: "10.0.0.5*@eth0", ips: "10.1.0.5", missing: "10.1.0.5", at: "10.1.0.5@eth1"},
		{name: "an interface with another address", want: four, asked: "eth1", kept: "10.1.0.5@eth1",
			have: "10.1.0.6@eth1", ips: "10.1.0.6", at: "10.1.0.6@eth1"},
		{name: "an interface, kept from another choice", want: four, asked: "eth1", kept: "10.0.0.5*"},
		{name: "no interface any more", want: four, kept: "10.1.0.5@eth1", have: "10.0.0.5*@eth0 10.1.0.5@eth1",
			ips: "10.0.0.5", at: "10.0.0.5*"},
		{name: "an address and an interface", want: both, asked: "10.0.0.7 eth1", have: "10.1.0.5@eth1 fd01::5@eth1",
			ips: "10.0.0.7 fd01::5", missing: "10.0.0.7", at: "fd01::5@eth1"},
	} {
		asked := make([]Asked, len(strings.Fields(c.asked)))
		for i, f := range strings.Fields(c.asked) {
			if err := asked[i].UnmarshalText([]byte(f)); err != nil {
				t.Error(err)
			}
		}
		got := choose(asked, c.want, list(c.kept), list(c.have))
		text := func(ips []netip.Addr) string { return strings.Trim(fmt.Sprint(ips), "[]") }
		var at []string
		for _, a := range got.stored {
			s := a.IP.String()
			if a.Routed {
				s += "*"
			}
			if a.Interface != "" {
				s += "@" + a.Interface
			}
			at = append(at, s)
		}
		if text(got.IPs) != c.ips || text(got.Missing) != c.missing || strings.Join(at, " ") != c.at {
			t.Errorf("%s: %v, missing %v, written down %v", c.name, got.IPs, got.Missing, at)
		}
	}
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}

// TestTracker goes through a machine's life with the kernel's own messages.
func TestTracker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ip(t, "link set lo up")
	ip(t, "link add eth0 type veth peer name far")
	ip(t, "link set far up")
	ip(t, "link add docker0 type bridge")
	ip(t, "link set docker0 up")
	ip(t, "address add 172.17.0.1/16 dev docker0")
	cfg := Config{Want: Families{V4: true}, File: filepath.Join(t.TempDir(), "agent", "addresses.json"),
		Log: slog.New(slog.DiscardHandler)}
	start := func() (tr *Tracker, ended chan error) {
		t.Helper()
		tr, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		ended, ready := make(chan error, 1), make(chan struct{}, 100)
		go func() { ended <- tr.Run(ctx, func() { ready <- struct{}{} }) }()
		<-ready
		return tr, ended
	}
	becomes := func(tr *Tracker, ips, missing string) {
		t.Helper()
		for end := time.After(20 * time.Second); ; {
			c, changed := tr.Now()
			if got := fmt.Sprint(c.IPs, c.Missing); got == "["+ips+"] ["+missing+"]" {
				return
			}
			select {
			case <-changed:
			case <-end:
				t.Fatalf("%v, missing %v; want %s, missing %s", c.IPs, c.Missing, ips, missing)
			}
		}
	}
	// Updated from a release that kept no addresses, and booted without a cable.
	cfg.Earlier = []string{"10.0.0.4"}
	updated, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	becomes(updated, "10.0.0.4", "10.0.0.4")
	if err := os.Remove(cfg.File); err != nil {
		t.Fatal(err)
	}
	cfg.Earlier = nil
	tr, ended := start()
	becomes(tr, "", "")
	if _, _, err := tr.Take(); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	// The cable comes late, and with it DHCP.
	ip(t, "link set eth0 up")
	ip(t, "address add 10.0.0.5/24 dev eth0")
	becomes(tr, "10.0.0.5", "")
	if _, _, err := tr.Take(); err != nil {
		t.Fatal(err)
	}
	ip(t, "route add default via 10.0.0.1 dev eth0")
	// The lease is renewed with another address beside the old one, and the old one goes and comes.
	ip(t, "address add 10.0.0.6/24 dev eth0")
	ip(t, "address del 10.0.0.5/24 dev eth0")
	ip(t, "address add 10.0.0.5/24 dev eth0")
	becomes(tr, "10.0.0.5", "")
	// No cable: the address stays the node's.
	ip(t, "address flush dev eth0")
	becomes(tr, "10.0.0.5", "10.0.0.5")
	select {
	case err := <-ended:
		t.Fatal(err)
	default:
	}
	// A boot without a cable.
	booted, endedToo := start()
	becomes(booted, "10.0.0.5", "10.0.0.5")
	if _, _, err := booted.Take(); err != nil {
		t.Fatal(err)
	}
	ip(t, "address add 10.0.0.5/24 dev eth0")
	becomes(booted, "10.0.0.5", "")
	// Another network.
	ip(t, "address flush dev eth0")
	ip(t, "address add 10.9.0.5/24 dev eth0")
	for _, ended := range []chan error{ended, endedToo} {
		select {
		case err := <-ended:
			var moved *Moved
			if !errors.As(err, &moved) || fmt.Sprint(moved.To) != "[10.9.0.5]" {
				t.Errorf("ended by %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("another address is not noticed")
		}
	}
	// The second family, for a cluster that has both.
	cfg.Want.V6 = true
	both, _ := start()
	becomes(both, "10.9.0.5", "")
	ip(t, "address add fd09::5/64 dev eth0 nodad")
	becomes(both, "10.9.0.5 fd09::5", "")
	if err := both.Narrow(Families{V4: true}); err != nil {
		t.Fatal(err)
	}
	becomes(both, "10.9.0.5", "")
}
