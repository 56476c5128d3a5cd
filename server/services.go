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

// serverAddresses are those of all servers, as far as they are known by now.
func (s *Server) serverAddresses() (out []netip.Addr) {
	var others []string
	if s.others != nil {
		others, _ = s.others.list()
	}
	for _, text := range append(others, s.published()) {
		if ap, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out
}
