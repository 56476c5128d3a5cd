package proxy

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/systemports"
)

// TestGuard: what a Service asks for, and what is left of it.
func TestGuard(t *testing.T) {
	ip, prefix := netip.MustParseAddr, netip.MustParsePrefix
	g := &Guard{
		Servers: []netip.AddrPort{netip.MustParseAddrPort("10.93.0.2:6443"), netip.MustParseAddrPort("10.93.0.9:7443")},
		Own:     []netip.Addr{ip("10.93.0.3"), ip("fd93::3")}, Ports: systemports.Ports{API: 6443, Kubelet: 10250},
		Ranges:   []netip.Prefix{prefix("10.42.0.0/16"), prefix("10.43.0.0/16")},
		External: []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")},
	}
	file := filepath.Join(t.TempDir(), "guard")
	if err := g.Write(file); err != nil {
		t.Fatal(err)
	}
	if back := ReadGuard(file); !reflect.DeepEqual(back, g) {
		t.Errorf("%+v", back)
	}
	none := *g
	none.External = nil
	for _, c := range []struct {
		g       *Guard
		addr    string
		proto   v1.Protocol
		port    uint16
		why     string // as an external IP
		balance bool   // whether a load balancer has it
	}{
		{g, "10.93.0.2", v1.ProtocolTCP, 6443, "the API server", false},
		{g, "10.93.0.9", v1.ProtocolTCP, 7443, "the API server", false},
		{g, "10.93.0.2", v1.ProtocolTCP, 2380, "etcd", false},
		{g, "10.93.0.3", v1.ProtocolTCP, 10250, "the kubelet", false},
		{g, "fd93::3", v1.ProtocolTCP, 5001, "image sharing", false},
		{g, "10.93.0.3", v1.ProtocolUDP, 8472, "the pods' network", false},
		{g, "10.93.0.3", v1.ProtocolUDP, 10250, "", true},
		{g, "10.93.0.2", v1.ProtocolTCP, 80, "", true},
		{g, "192.0.2.7", v1.ProtocolTCP, 6443, "", true},
		{g, "10.43.0.10", v1.ProtocolUDP, 53, "pods or Services", false},
		{g, "10.42.3.3", v1.ProtocolTCP, 80, "pods or Services", false},
		{g, "127.0.0.1", v1.ProtocolTCP, 6444, "this machine", false},
		{g, "169.254.53.53", v1.ProtocolUDP, 225, "this machine", false},
		{g, "::1", v1.ProtocolTCP, 80, "this machine", false},
		{&none, "192.0.2.7", v1.ProtocolTCP, 80, "service-external-ips", true},
		{&none, "10.93.0.2", v1.ProtocolTCP, 6443, "service-external-ips", false},
		{nil, "10.93.0.2", v1.ProtocolTCP, 6443, "", true},
	} {
		sp := rules.ServicePort{Service: "ns/s", Port: c.port, ExternalIPs: []netip.Addr{ip(c.addr)}}
		got := c.g.restrict(&sp, c.proto)
		if (len(sp.ExternalIPs) == 0) != (c.why != "") || !strings.Contains(strings.Join(got, "\n"), c.why) ||
			len(got) > 1 {
			t.Errorf("external %s:%d/%s: %v, left %v", c.addr, c.port, c.proto, got, sp.ExternalIPs)
		}
		sp = rules.ServicePort{Service: "ns/s", Port: c.port, LoadBalancerIPs: []netip.Addr{ip(c.addr)}}
		if got := c.g.restrict(&sp, c.proto); (len(sp.LoadBalancerIPs) == 1) != c.balance {
			t.Errorf("balancer %s:%d/%s: %v, left %v", c.addr, c.port, c.proto, got, sp.LoadBalancerIPs)
		}
	}
	sp := rules.ServicePort{Service: "ns/s", Port: 80, NodePort: 10250}
	if got := g.restrict(&sp, v1.ProtocolTCP); len(got) != 1 || sp.NodePort != 0 {
		t.Errorf("node port: %v, %d", got, sp.NodePort)
	}
}

// TestGuardChanges: Services that are there lose and get addresses when the guard changes, and status says which.
func TestGuardChanges(t *testing.T) {
	f := newFamily(rules.IPv4, Config{NodeName: "node"}, &Proxy{})
	s := labService("thief", "10.43.0.9", func(s *v1.Service) { s.Spec.Ports[0].Port = 6443 })
	s.Spec.ExternalIPs = []string{"10.93.0.2", "192.0.2.7"}
	f.services.Update(nil, s)
	node := nodeInfo{name: "node", guard: &Guard{External: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}}
	f.read(node, false)
	names := slices.Collect(f.builder.Names())
	if len(names) != 1 {
		t.Fatal(names)
	}
	externals := func() []netip.Addr {
		sp, _ := f.builder.Get(names[0])
		return sp.ExternalIPs
	}
	if len(externals()) != 2 || len(f.refusals()) != 0 {
		t.Fatal(externals(), f.refusals())
	}
	guard := *node.guard
	guard.Servers = []netip.AddrPort{netip.MustParseAddrPort("10.93.0.2:6443")} // a server has come
	node.guard = &guard
	f.read(node, true)
	if got := externals(); len(got) != 1 || got[0] != netip.MustParseAddr("192.0.2.7") || len(f.refusals()) != 1 {
		t.Error(got, f.refusals())
	}
	node.guard = &Guard{}
	f.read(node, true)
	if len(externals()) != 0 || len(f.refusals()) != 2 {
		t.Error(externals(), f.refusals())
	}
	f.services.Update(s, nil)
	f.read(node, false)
	if len(f.refusals()) != 0 {
		t.Error(f.refusals())
	}
	// The proxy listens itself where a balancer is to ask for the health of a Service.
	for port, want := range map[int32]int{10250: 0, 32000: 1} {
		h := labService("health", "10.43.0.10", func(s *v1.Service) {
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = v1.ServiceTypeLoadBalancer, v1.ServiceExternalTrafficPolicyLocal, port
		})
		f.services.Update(nil, h)
		f.read(node, false)
		if len(f.healthPorts) != want {
			t.Errorf("health check port %d: %v", port, f.healthPorts)
		}
		f.services.Update(h, nil)
		f.read(node, false)
	}
}
