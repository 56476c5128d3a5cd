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
	return plugins.Limits{
		ExternalIPs: c.ExternalIPs, Inside: slices.Concat(c.ClusterCIDR, c.ServiceCIDR),
		Ports: systemports.Ports{API: int(c.HTTPSPort)}, Servers: s.serverAddresses,
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
