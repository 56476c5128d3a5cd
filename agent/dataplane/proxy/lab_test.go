package proxy

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy/conntrack"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// lab is this process's network namespace as a node with two pods, another node with a pod, and a client.
type lab struct {
	testing.TB
	node, a, b, remote, client *nettest.Host
}

func (l *lab) hosts() []*nettest.Host { return []*nettest.Host{l.node, l.a, l.b, l.remote, l.client} }

var labNode = netip.MustParseAddr("203.0.113.1")

const (
	labGateway = "10.42.8.1" // the node's address towards its pods
	labClient  = "203.0.113.2"
)

var labPods = map[string]string{"a": "10.42.8.11", "b": "10.42.8.12", "remote": "10.42.9.21"}

func newLab(t testing.TB) *lab {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	wire := nettest.New(t, "wire")
	l := &lab{t, nettest.Here(t, "node"), nettest.New(t, "a"), nettest.New(t, "b"), nettest.New(t, "remote"),
		nettest.New(t, "client")}
	wire.Bridge(t, "br0")
	l.node.Bridge(t, "cni8", labGateway+"/24")
	l.node.Plug(t, "lab0", wire, "br0", labNode.String()+"/24")
	t.Cleanup(func() {
		_, _ = netfilter.Remove(context.Background(), rules.TableName)
		for _, name := range []string{"lab0", "cni8"} {
			if link, err := netlink.LinkByName(name); err == nil {
				_ = netlink.LinkDel(link)
			}
		}
	})
	l.client.Plug(t, "eth0", wire, "br0", labClient+"/24")
	l.remote.Plug(t, "eth0", wire, "br0", "203.0.113.3/24")
	l.remote.Address(t, "lo", labPods["remote"]+"/32")
	for name, p := range map[string]*nettest.Host{"a": l.a, "b": l.b} {
		p.Plug(t, "eth0", l.node, "cni8", labPods[name]+"/24")
		p.Route(t, "0.0.0.0/0", labGateway)
	}
	for _, h := range []*nettest.Host{l.node, l.remote} {
		h.Sysctl(t, "net/ipv4/ip_forward", "1")
		h.Sysctl(t, "net/ipv4/icmp_ratelimit", "0")
	}
	for _, h := range []*nettest.Host{l.a, l.b, l.remote} {
		// Masqueraded connections come from few addresses and meet what is left of earlier ones at the pod, which then
		// ignores their first packet. That is the pod's doing, not the node's.
		h.Sysctl(t, "net/ipv4/tcp_max_tw_buckets", "0")
	}
	l.node.Route(t, "10.42.9.0/24", "203.0.113.3")
	l.node.Route(t, "10.43.8.0/24", labClient) // somewhere: translated before it leaves
	l.remote.Route(t, "10.42.8.0/24", labNode.String())
	l.client.Route(t, "10.43.8.0/24", labNode.String())
	for _, p := range []*nettest.Host{l.a, l.b, l.remote} {
		p.Serve(t, 8080)
		p.Serve(t, 8081)
	}
	return l
}

// labService has the cluster IP 10.43.8.N and a port "p", 80.
func labService(name, ip string, mod ...func(*v1.Service)) *v1.Service {
	s := service(name, ip, v1.ProtocolTCP)
	for _, f := range mod {
		f(s)
	}
	return s
}

func udp(s *v1.Service) { s.Spec.Ports[0].Protocol = v1.ProtocolUDP }

// ep is an endpoint that is one of the pods: "a", "a terminating", "a notready" and so on.
func ep(what string) discovery.Endpoint {
	yes, no := true, false
	w := strings.Fields(what)
	node := "node"
	if w[0] == "remote" {
		node = "other"
	}
	e := discovery.Endpoint{Addresses: []string{labPods[w[0]]}, NodeName: &node,
		Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}}
	for _, x := range w[1:] {
		kind, of, _ := strings.Cut(x, "=")
		switch kind {
		case "notready":
			e.Conditions.Ready, e.Conditions.Serving = &no, &no
		case "published": // not ready, but publishNotReadyAddresses
			e.Conditions.Serving = &no
		case "terminating":
			e.Conditions.Ready, e.Conditions.Terminating = &no, &yes
		case "stopped":
			e.Conditions.Ready, e.Conditions.Serving, e.Conditions.Terminating = &no, &no, &yes
		case "nonode":
			e.NodeName = nil
		case "zone":
			if e.Hints == nil {
				e.Hints = &discovery.EndpointHints{}
			}
			e.Hints.ForZones = append(e.Hints.ForZones, discovery.ForZone{Name: of})
		case "node":
			if e.Hints == nil {
				e.Hints = &discovery.EndpointHints{}
			}
			e.Hints.ForNodes = append(e.Hints.ForNodes, discovery.ForNode{Name: of})
		}
	}
	return e
}

func labSlice(service string, proto v1.Protocol, port int32, eps ...string) *discovery.EndpointSlice {
	s := slice(service, proto)
	s.Ports[0].Port = &port
	if port != 8080 {
		s.Name += "-more"
	}
	for _, e := range eps {
		s.Endpoints = append(s.Endpoints, ep(e))
	}
	return s
}

// served is a family that is synced by hand.
type served struct {
	*lab
	f        *family
	node     nodeInfo
	services map[string]*v1.Service
	slices   map[string]*discovery.EndpointSlice
}

func (l *lab) serve() *served {
	conn, err := netfilter.Dial()
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = conn.Close() })
	s := &served{lab: l, services: map[string]*v1.Service{}, slices: map[string]*discovery.EndpointSlice{}}
	cfg := Config{NodeName: "node", NodeIPs: []netip.Addr{labNode}, Log: slog.New(slog.DiscardHandler),
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	s.f = newFamily(rules.IPv4, cfg, &Proxy{})
	s.f.resync = true
	if s.f.table, err = nft.NewTable(conn, s.f.cfg); err != nil {
		l.Fatal(err)
	}
	s.node = nodeInfo{name: "node", topology: map[string]string{},
		podCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.8.0/24")}, host: newHostPorts(cfg)}
	return s
}

// set makes these the Services and slices that there are, in one update.
func (s *served) set(objs ...any) {
	s.Helper()
	services, eps := map[string]*v1.Service{}, map[string]*discovery.EndpointSlice{}
	for _, o := range objs {
		switch o := o.(type) {
		case *v1.Service:
			services[o.Name] = o
		case *discovery.EndpointSlice:
			eps[o.Name] = o
		}
	}
	for name, old := range s.services {
		if services[name] == nil {
			s.f.services.Update(old, nil)
		}
	}
	for name, now := range services {
		s.f.services.Update(s.services[name], now)
	}
	for name, old := range s.slices {
		if eps[name] == nil {
			s.f.endpoints.observe(old, true)
		}
	}
	for _, now := range eps {
		s.f.endpoints.observe(now, false)
	}
	s.services, s.slices = services, eps
	s.sync(true)
}

func (s *served) sync(all bool) {
	s.Helper()
	_, stale := s.f.read(s.node, all)
	if _, err := s.f.write(context.Background(), slog.New(slog.DiscardHandler)); err != nil {
		s.Fatal(err)
	}
	if len(stale.ports) > 0 {
		conntrack.CleanStaleEntries(conntrack.New(), stale.family, stale.ports, stale.endpoints)
	}
}

// expect asks until every wanted answer has come; another one is an error. "a 10.42.8.1" is the pod that
// answered and the source that it saw.
func (l *lab) expect(from *nettest.Host, network, to string, want ...string) {
	l.Helper()
	seen := map[string]bool{}
	tries, within := 40, nettest.Patience
	if len(want) == 1 {
		tries = 6
	}
	if slices.Contains(want, "silence") {
		tries, within = 1, nettest.Silence
	}
	for range tries {
		got := from.Answer(l, network, to, within)
		if !slices.Contains(want, got) {
			l.Errorf("%s %s %s: got %q, want %q", from.Name, network, to, got, want)
			return
		}
		if seen[got] = true; len(seen) == len(want) && len(want) > 1 {
			return
		}
	}
	if len(seen) != len(want) {
		l.Errorf("%s %s %s: got only %v of %q", from.Name, network, to, seen, want)
	}
}
