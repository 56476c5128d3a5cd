package server

import (
	"context"

	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/server/controlplane"
)

// Sources returns the server's sections of `umiak status`, in order.
func (s *Server) Sources() []status.Source {
	webhooks := controlplane.Webhooks{Ready: s.plane.APIServer.Ready, Client: s.cfg.clients().Maker("umiak-status")}
	return []status.Source{
		s.components, s.runner.Section, s.snapshots.Section, s.pki.Section, s.tunnels.Section, webhooks.Section,
		s.manifests.Section,
	}
}

// components is the section Components: the parts' own checks, tokens that are not used, and who runs the controllers.
func (s *Server) components(ctx context.Context) status.Section {
	out := status.Section{Name: "Components", Rows: append(s.health.Rows(ctx), s.tokens.Rows()...)}
	if s.cluster.Several() {
		out.Rows = append(out.Rows, s.cluster.Election.Rows()...)
	}
	return out
}
