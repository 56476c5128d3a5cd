package server

import (
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/internal/systemports"
	plugins "github.com/umiak-io/umiak/server/admission"
)

// serviceLimits are what Services may not take.
func (s *Server) serviceLimits() plugins.Limits {
	c := s.cfg
	prefixes := func(list []string) (out []netip.Prefix) {
		for _, text := range list {
			if p, err := netip.ParsePrefix(text); err == nil { // Validate has said so
				out = append(out, p)
			}
		}
		return out
	}
	return plugins.Limits{
		ExternalIPs: prefixes(c.ExternalIPs), Inside: prefixes(slices.Concat(c.ClusterCIDR, c.ServiceCIDR)),
		Ports: systemports.Ports{API: c.HTTPSPort}, Servers: s.serverAddresses,
	}
}

// serverAddresses returns the addresses of all servers that are known by now.
func (s *Server) serverAddresses() []netip.Addr {
	out := s.cluster.Peers.Addresses()
	if a, err := netip.ParseAddr(s.advertise()); err == nil {
		out = append(out, a.Unmap())
	}
	return out
}
