package serviceguard

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/internal/systemports"
)

func TestGuard(t *testing.T) {
	own, ranges := []netip.Addr{netip.MustParseAddr("10.0.0.5")}, []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	servers := []string{"10.0.0.1:6443", "[::ffff:10.0.0.2]:7443", "server.example:6443"}
	for name, c := range map[string]struct {
		ports   systemports.Ports
		servers []string
		want    proxy.Guard
	}{
		// The port of the URL, at which all servers listen.
		"a server's own node": {systemports.Ports{API: 6444, Kubelet: 10260}, servers[:1], proxy.Guard{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443")},
			Ports:   systemports.Ports{API: 6444, Kubelet: 10260},
		}},
		// The balancer's port is not the API's, and a name has no address.
		"an agent": {systemports.Ports{Kubelet: 10250}, servers, proxy.Guard{
			Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443"),
				netip.MustParseAddrPort("10.0.0.2:7443")},
			Ports: systemports.Ports{API: 7443, Kubelet: 10250},
		}},
		"the only server": {systemports.Ports{API: 6443, Kubelet: 10250}, nil,
			proxy.Guard{Ports: systemports.Ports{API: 6443, Kubelet: 10250}}},
	} {
		c.want.Own, c.want.Ranges, c.want.External = own, ranges, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		s := New(Config{
			Own: own, Ranges: ranges, Ports: c.ports, Log: slog.New(slog.DiscardHandler),
			Servers: func() ([]string, <-chan struct{}) { return c.servers, nil },
			ExternalIPs: func() ([]netip.Prefix, <-chan struct{}) {
				return []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, nil
			},
		})
		if got := s.Guard(); !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestFollow: each change of the servers makes another guard, which `umiak debug service` reads from the file.
func TestFollow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "guard.json")
	changed := make(chan struct{})
	list, next := []string{"10.0.0.1:6443"}, changed
	s := New(Config{
		File: file, Log: slog.New(slog.DiscardHandler),
		Servers: func() ([]string, <-chan struct{}) {
			defer func() { list, next = append(list, "10.0.0.2:6443"), nil }()
			return list, next
		},
		ExternalIPs: func() ([]netip.Prefix, <-chan struct{}) { return nil, nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	set, ended := make(chan *proxy.Guard), make(chan struct{})
	go func() { defer close(ended); s.Follow(ctx, func(g *proxy.Guard) { set <- g }) }()
	if g := <-set; len(g.Servers) != 1 {
		t.Errorf("%+v", g)
	}
	close(changed)
	second := <-set
	cancel()
	<-ended
	if kept := proxy.ReadGuard(file); len(second.Servers) != 2 || kept == nil ||
		!reflect.DeepEqual(kept.Servers, second.Servers) {
		t.Errorf("set %+v, in the file %+v", second, kept)
	}
}
