package proxy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/systemports"
)

// Guard describes the addresses and ports that no Service gets on this node. The API server refuses such objects; one
// that it has accepted, because it could not know, has no effect here.
type Guard struct {
	// Servers are the API servers that are known by address.
	Servers []netip.AddrPort `json:"servers"`
	// Own are this node's addresses. No Service gets one of Ports there or at the servers' addresses.
	Own   []netip.Addr      `json:"own"`
	Ports systemports.Ports `json:"ports"`
	// Ranges are the addresses of pods and Services, which a Service has no other way than from the cluster.
	Ranges []netip.Prefix `json:"ranges"`
	// External are the ranges of which spec.externalIPs may be.
	External []netip.Prefix `json:"external"`
}

// ReadGuard reads what Write has written; nil if there is none, as while umiak does not run.
func ReadGuard(file string) *Guard {
	raw, err := os.ReadFile(file)
	g := &Guard{}
	if err != nil || json.Unmarshal(raw, g) != nil {
		return nil
	}
	return g
}

// Write writes the guard to a file, for Explain.
func (g *Guard) Write(file string) error {
	raw, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("encode %s: %w", file, err)
	}
	return atomicfile.Write(file, raw, 0o600)
}

// holder names what has a port of an address, empty if a Service may take it.
func (g *Guard) holder(a netip.Addr, proto v1.Protocol, port uint16) string {
	switch {
	case a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.IsMulticast():
		return "this machine"
	case slices.ContainsFunc(g.Ranges, func(p netip.Prefix) bool { return p.Contains(a) }):
		return "the cluster's pods or Services"
	}
	server := false
	for _, s := range g.Servers {
		if server = server || s.Addr() == a; s.Addr() == a && s.Port() == port && proto == v1.ProtocolTCP {
			return "the API server"
		}
	}
	if server || slices.Contains(g.Own, a) {
		return g.Ports.Holder(proto, int(port))
	}
	return ""
}

// holds reports whether a TCP port of the node belongs to the system.
func (g *Guard) holds(port int) bool {
	return g != nil && g.Ports.Holder(v1.ProtocolTCP, port) != ""
}

// restrict takes from a Service port what it may not have, and returns that with the reasons.
func (g *Guard) restrict(sp *rules.ServicePort, proto v1.Protocol) (refused []string) {
	if g == nil {
		return nil
	}
	free := func(a netip.Addr) bool {
		holder := g.holder(a, proto, sp.Port)
		if holder != "" {
			refused = append(refused, fmt.Sprintf("%s of Service %s: belongs to %s", at(a, sp.Port, proto), sp.Service,
				holder))
		}
		return holder == ""
	}
	allowed := func(a netip.Addr) bool {
		if slices.ContainsFunc(g.External, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
		refused = append(refused, fmt.Sprintf("external IP %s of Service %s: is in no range of the servers' setting service-external-ips", a, sp.Service))
		return false
	}
	sp.ExternalIPs = slices.DeleteFunc(sp.ExternalIPs, func(a netip.Addr) bool { return !allowed(a) || !free(a) })
	sp.LoadBalancerIPs = slices.DeleteFunc(sp.LoadBalancerIPs, func(a netip.Addr) bool { return !free(a) })
	if holder := g.Ports.Holder(proto, int(sp.NodePort)); sp.NodePort != 0 && holder != "" {
		refused = append(refused, fmt.Sprintf("node port %d/%s of Service %s: belongs to %s", sp.NodePort, proto,
			sp.Service, holder))
		sp.NodePort = 0
	}
	return refused
}

func at(a netip.Addr, port uint16, proto v1.Protocol) string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(a, port), proto)
}

// maxRefused bounds what a status tells: anybody may make Services.
const maxRefused = 20

// refusals returns the addresses and ports that Services do not get, at most maxRefused.
func (f *family) refusals() []string {
	var out []string
	for _, r := range f.refused {
		out = append(out, r[:min(len(r), maxRefused)]...)
	}
	slices.Sort(out)
	return out[:min(len(out), maxRefused)]
}

// SetGuard replaces the guard and checks all Services again.
func (p *Proxy) SetGuard(g *Guard) {
	p.mu.Lock()
	p.guard, p.nodeSeen = g, true
	p.mu.Unlock()
	p.changed()
}
