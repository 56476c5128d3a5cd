package server

import (
	"net/netip"

	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/tunnel"
)

// reachNodes takes nodes' tunnels and has the API server use them.
func (s *Server) reachNodes() error {
	s.tunnels = tunnel.NewTunnels(tunnel.Identity{ClientCA: s.pki.CACert(pki.ClientCA)}, s.log)
	d := &tunnel.Dialer{Nodes: tunnel.NewNodes(prefixes(s.cfg.ClusterCIDR)), Tunnels: s.tunnels, PodsByTunnel: s.cfg.DisableAgent}
	if !s.cfg.DisableAgent {
		name := s.cfg.NodeName
		d.Self = name
	}
	s.plane.APIServer.Front(tunnelwire.Path, s.tunnels)
	s.plane.APIServer.DialWith(d)
	return nil
}

// prefixes parses ranges that Validate has checked.
func prefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}
