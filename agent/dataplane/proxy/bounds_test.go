package proxy

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// costly makes a Service whose lists are of these lengths.
func costly(name string, ports, externals, ingress, ranges int) *v1.Service {
	s := labService(name, "10.43.0.9")
	port := s.Spec.Ports[0]
	s.Spec.Ports = nil
	for i := range ports {
		port.Name, port.Port = fmt.Sprint("p", i), int32(1000+i)
		s.Spec.Ports = append(s.Spec.Ports, port)
	}
	s.Spec.Type = v1.ServiceTypeLoadBalancer
	for i := range externals {
		s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, fmt.Sprintf("192.0.%d.%d", i>>8, i&255))
	}
	for i := range ingress {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress,
			v1.LoadBalancerIngress{IP: fmt.Sprintf("198.51.100.%d", i)})
	}
	for i := range ranges {
		s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges,
			fmt.Sprintf("203.%d.%d.0/24", i>>8, i&255))
	}
	return s
}

// TestServicesThatCostTooMuch: what a Service's lists give, multiplied, is bounded for one and for a namespace; what
// is beyond that is closed, and comes back when there is room.
func TestServicesThatCostTooMuch(t *testing.T) {
	p := &Proxy{bounds: newBounds(), loop: reconcile.New(reconcile.Config{})}
	f := newFamily(rules.IPv4, Config{NodeName: "node"}, p)
	p.families = []*family{f}
	elems := func() (n, firewalled int) {
		f.read(nodeInfo{name: "node"}, false)
		for e := range f.builder.All() {
			n++
			if e.Set == rules.FirewallAllowed {
				firewalled++
			}
		}
		return n, firewalled
	}
	for what, s := range map[string]*v1.Service{
		"source ranges": costly("s", 1000, 0, 3, 1000), "external IPs": costly("s", 1000, 1000, 0, 0),
		"no balancer yet": costly("s", 1000, 0, 0, 1000),
	} {
		p.updateService(nil, s)
		if n, fw := elems(); n > 1100 || fw > 0 {
			t.Errorf("%s: %d elements, %d of ranges", what, n, fw)
		}
		for _, name := range f.builder.PortsOf(nameOf(s).String()) {
			if sp, _ := f.builder.Get(name); len(sp.LoadBalancerIPs)+len(sp.ExternalIPs) > 0 {
				t.Fatalf("%s: %+v", what, sp)
			}
		}
		if refused := p.bounds.refusals(); len(refused) != 1 || !strings.Contains(refused[0], nameOf(s).String()) ||
			!strings.Contains(refused[0], "at most 20000") {
			t.Errorf("%s: %q", what, refused)
		}
		p.updateService(s, nil)
		if n, _ := elems(); n != 0 || len(p.bounds.refusals()) != 0 {
			t.Errorf("%s: %d elements stay, %q", what, n, p.bounds.refusals())
		}
	}
	// A large one that is legitimate, three times: the last is beyond the bound of the namespace, until another one
	// goes.
	var all []*v1.Service
	for i := range 3 {
		all = append(all, costly(fmt.Sprint("s", i), 10, 0, 2, 1000))
		p.updateService(nil, all[i])
	}
	const one = 10 * 2 * (1000 + 2)  // each address of the balancer may use the other
	if _, fw := elems(); fw != one { // they ask for the same addresses and ports, which the first by name has
		t.Errorf("%d elements of ranges", fw)
	}
	if refused := p.bounds.refusals(); len(refused) != 1 || !strings.Contains(refused[0], "s2") ||
		!strings.Contains(refused[0], "at most 50000") {
		t.Errorf("refused: %q", refused)
	}
	p.updateService(all[0], nil)
	if refused := p.bounds.refusals(); len(refused) != 0 {
		t.Errorf("refused: %q", refused)
	}
	f.read(nodeInfo{name: "node"}, false)
	for _, name := range f.builder.PortsOf(nameOf(all[2]).String()) {
		if sp, _ := f.builder.Get(name); len(sp.LoadBalancerIPs) != 2 || len(sp.SourceRanges) != 1000 {
			t.Fatalf("s2 has %d addresses and %d ranges", len(sp.LoadBalancerIPs), len(sp.SourceRanges))
		}
	}
	p.updateService(all[1], nil)
	p.updateService(all[2], nil)
	if n, _ := elems(); n != 0 || len(p.bounds.costs)+len(p.bounds.over) != 0 {
		t.Errorf("%d elements stay, %v", n, p.bounds)
	}
}
