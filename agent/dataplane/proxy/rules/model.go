package rules

import (
	"net/netip"
	"slices"
)

// ServicePort is one port of a Service as the node should serve it: every decision that depends on
// Kubernetes (which endpoints are ready, near or local) has been made.
type ServicePort struct {
	// Name is unique among Service ports: namespace/name:port/protocol.
	Name string
	// Service is the namespace/name of its Service.
	Service string

	Protocol    uint8
	ClusterIP   netip.Addr
	Port        uint16
	NodePort    uint16
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the addresses in the Service's status that packets arrive with.
	LoadBalancerIPs []netip.Addr
	// SourceRanges are the clients that may use LoadBalancerIPs; empty means all.
	SourceRanges []netip.Prefix

	// Affinity is the time in seconds during which a client stays with its endpoint; 0 means none.
	Affinity uint32
	// InternalLocal and ExternalLocal are the traffic policies "Local".
	InternalLocal, ExternalLocal bool

	// Cluster and Local are the endpoints for the traffic policies of these names.
	Cluster, Local []netip.AddrPort
	// Anywhere is true if there are endpoints on any node, which this node may not be allowed to use.
	Anywhere bool
	// Hairpin are the endpoints that run on this node, which may be their own clients.
	Hairpin []netip.Addr
}

// Config holds the parameters of the fixed part of a table.
type Config struct {
	Family Family
	// PodCIDRs are the addresses of all pods. Traffic to a ClusterIP from elsewhere is masqueraded, so
	// that the answer comes back through this node. Empty: nothing is known of pods, nothing masqueraded.
	PodCIDRs []netip.Prefix
	// NodePortAddresses limits on which of the node's addresses node ports answer; empty means all but
	// loopback ones.
	NodePortAddresses []netip.Prefix
	// MasqueradeMark is the bit of the packet mark that says "masquerade this"; 0 means 0x4000, the one
	// that Kubernetes reserves by convention.
	MasqueradeMark uint32
}

const (
	maxEndpoints = 1<<15 - 1
	maxAffinity  = 86400 * 7
)

// normalize returns s with everything left out that this family cannot carry, lists sorted and unique.
func normalize(f Family, s ServicePort) ServicePort {
	addrs := func(in []netip.Addr, seen ...netip.Addr) []netip.Addr {
		var out []netip.Addr
		for _, a := range in {
			if f.Has(a) && !slices.Contains(seen, a) {
				out = append(out, a)
			}
		}
		slices.SortFunc(out, netip.Addr.Compare)
		return slices.Compact(out)
	}
	eps := func(in []netip.AddrPort) []netip.AddrPort {
		out := make([]netip.AddrPort, 0, len(in))
		for _, e := range in {
			if f.Has(e.Addr()) && e.Port() != 0 {
				out = append(out, e)
			}
		}
		slices.SortFunc(out, netip.AddrPort.Compare)
		out = slices.Compact(out)
		return out[:min(len(out), maxEndpoints)]
	}
	s.LoadBalancerIPs = addrs(s.LoadBalancerIPs, s.ClusterIP)
	s.ExternalIPs = addrs(s.ExternalIPs, append([]netip.Addr{s.ClusterIP}, s.LoadBalancerIPs...)...)
	s.Hairpin = addrs(s.Hairpin)
	s.Cluster, s.Local = eps(s.Cluster), eps(s.Local)
	s.Affinity = min(s.Affinity, maxAffinity)
	var ranges []netip.Prefix
	for _, p := range s.SourceRanges {
		if p.IsValid() && f.Has(p.Addr()) {
			ranges = append(ranges, p.Masked())
		}
	}
	s.SourceRanges = withoutOverlap(ranges)
	if len(s.Cluster)+len(s.Local) > 0 {
		s.Anywhere = true
	}
	return s
}

// withoutOverlap drops what lies within another prefix: an interval set may hold no overlap.
func withoutOverlap(in []netip.Prefix) []netip.Prefix {
	slices.SortFunc(in, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, p := range in {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
