package server

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/ownnode"
)

// NodeHooks are the callbacks of the node in the same process; the zero value is for a server without a node.
type NodeHooks struct {
	// Report is called with the failures of parts that are started again.
	Report lifecycle.Reporter
	// VolumeControllersMade is called after the controllers of volumes have been made in this process; see
	// controlplane.ControllerManager.
	VolumeControllersMade func()
}

// Joiner returns the source of the identity of the node on this machine: this server's own authorities.
func (s *Server) Joiner() agent.Joiner {
	if s.cluster.Several() {
		return ownnode.WithPeers{Node: s.node, Cluster: s.cluster}
	}
	return s.node
}

// waitReady returns when the API server answers.
func (s *Server) waitReady(ctx context.Context) error { return s.plane.APIServer.WaitReady(ctx) }

// publish puts addresses into the API server's certificate, and makes the API server publish the one it advertises.
func (s *Server) publish(addresses []string) error {
	if err := s.pki.Add(s.pki.ServingLeaf(s.cfg.serving().Names(), addresses)); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	s.plane.APIServer.AddressChanged()
	return nil
}

// admits returns why a node's tunnel is refused. Webhooks that a start needs may be behind a tunnel, so nodes are let
// in until those that have joined are known; then they are checked again.
func (s *Server) admits(ctx context.Context, node string, key []byte) error {
	if !s.join.Knows() {
		return nil
	}
	return s.join.Admits(ctx, node, key, false)
}

// serverAddresses returns the addresses of all servers that are known by now.
func (s *Server) serverAddresses() []netip.Addr {
	out := s.cluster.Peers.Addresses()
	if a, err := netip.ParseAddr(s.address.IP()); err == nil {
		out = append(out, a.Unmap())
	}
	return out
}

// takenOver makes the parts of this server use the authorities and keys that are in force now.
func (s *Server) takenOver() {
	if err := s.plane.APIServer.ReloadAccountKeys(); err != nil {
		s.log.Error("the API server does not verify ServiceAccount tokens with the keys of now; start this server again",
			"component", "certificates", "error", err)
	}
	s.tokens.Stale() // they hold the hash of the CA
}
