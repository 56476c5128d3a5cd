package server

import (
	"context"
	"net/netip"

	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/tunnel"
)

// newTunnels returns the server's end of the nodes' tunnels.
func (s *Server) newTunnels() *tunnel.Tunnels {
	return tunnel.NewTunnels(tunnel.Identity{
		ClientCA: s.pki.CACert(pki.ClientCA),
		Admits: func(ctx context.Context, node string, key []byte) error {
			if !s.join.Knows() { // webhooks that this start needs may be behind a tunnel; it is looked at again then
				return nil
			}
			return s.join.Admits(ctx, node, key, false)
		},
	}, s.log)
}

// reachNodes makes the API server use the nodes' tunnels.
func (s *Server) reachNodes() {
	s.join.OnLeave(func(node string) { go s.tunnels.Left(node) })
	nodes := tunnel.NewNodes(s.cfg.ClusterCIDR)
	nodes.Disputed = func(node string, addr netip.Addr) bool {
		return s.join.Disputed(node, addr) || s.join.Unregistered(node, addr)
	}
	d := &tunnel.Dialer{Nodes: nodes, Tunnels: s.tunnels, PodsByTunnel: s.cfg.DisableAgent}
	if !s.cfg.DisableAgent {
		name := s.cfg.NodeName
		d.Self = name
	}
	s.plane.APIServer.Front(tunnelwire.Path, s.tunnels)
	s.plane.APIServer.DialWith(d)
}
