package serviceroute

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/nettest"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// TestServicesWithoutDefaultRoute: the host reaches the address of a Service, of either family, with no default route,
// also after somebody has removed the routes.
func TestServicesWithoutDefaultRoute(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up", TxQLen: -1}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "link", "set", "dev", "up", "up")
	run(t, "ip", "address", "add", "192.168.70.1/24", "dev", "up")
	run(t, "ip", "address", "add", "fd70::1/64", "dev", "up", "nodad")
	run(t, "ip", "link", "set", "lo", "up")
	rules := `table inet services {
	chain out { type nat hook output priority -100;
		ip daddr 10.43.7.7 tcp dport 443 dnat ip to 192.168.70.1:8443
		ip6 daddr fd43::7 tcp dport 443 dnat ip6 to [fd70::1]:8443
	}
	chain post { type nat hook postrouting priority 100; tcp dport 8443 masquerade; }
}`
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nettest.ServeTCP(t, "[::]:8443", func(net.Conn) {})
	dial := func(to string) error {
		c, err := net.DialTimeout("tcp", to, time.Second)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	services := []string{"10.43.7.7:443", "[fd43::7]:443"}
	for _, s := range services {
		if err := dial(s); err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Fatalf("%s without the route: %v; the test shows nothing", s, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	up := make(chan struct{}, 1)
	r := New([]netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		func() { up <- struct{}{} }, slog.New(slog.DiscardHandler))
	go func() { ended <- r.Run(ctx, func() { close(ready) }) }()
	<-ready
	reach := func(when string) {
		t.Helper()
		for _, s := range services {
			eventually.Nil(t, s+" "+when, func() error { return dial(s) })
		}
	}
	reach("at first")
	run(t, "ip", "route", "flush", "proto", fmt.Sprint(protocol))
	run(t, "ip", "-6", "route", "flush", "proto", fmt.Sprint(protocol))
	reach("after a flush")
	run(t, "ip", "route", "del", "10.43.0.0/16")
	reach("after a removal")
	run(t, "ip", "link", "set", "lo", "down")
	run(t, "ip", "link", "set", "lo", "up")
	reach("after the loopback interface was down")
	select {
	case <-up:
	case <-time.After(10 * time.Second):
		t.Error("nobody is told that the loopback interface is up again")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	reach("after its end")
	for range 2 {
		if err := Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range services {
		if err := dial(s); err == nil {
			t.Errorf("%s is reached after cleanup", s)
		}
	}
}
