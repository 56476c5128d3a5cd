package server

import (
	"context"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// The actions that root's commands can run in a running server.
const (
	ActionRenew  control.Action[RenewRequest, RenewResult]                     = "certificates/renew"
	ActionRotate control.Action[cluster.RotateRequest, cluster.RotateResult]   = "certificates/rotate-ca"
	ActionSave   control.Action[SaveRequest, *backup.Saved]                    = "snapshot/save"
	ActionSeal   control.Action[control.Empty, control.Empty]                  = "keys/seal"
	ActionForget control.Action[cluster.ForgetRequest, cluster.ForgetResult]   = "servers/forget"
	ActionMoved  control.Action[cluster.MovedRequest, control.Empty]           = "servers/moved"
	ActionBegin  control.Action[encryption.BeginRequest, encryption.Progress]  = "secrets-encrypt/begin"
	ActionFollow control.Action[encryption.FollowRequest, encryption.Progress] = "secrets-encrypt/follow"
	ActionKeys   control.Action[control.Empty, *encryption.Status]             = "secrets-encrypt/status"
)

// SaveRequest asks for a snapshot. An empty name means backup.OnDemand; an empty passphrase means that of the settings.
type SaveRequest struct {
	Name       string `json:"name,omitempty"`
	Passphrase string `json:"passphrase,omitempty"`
}

// RenewRequest asks to issue leaves again. No names mean all.
type RenewRequest struct {
	Names []string `json:"names,omitempty"`
}

// RenewResult lists the certificates that were renewed.
type RenewResult struct {
	Renewed []pki.Certificate `json:"renewed"`
}

// control returns the socket behind `umiak certificate`, `umiak secrets-encrypt`, `umiak server forget` and `umiak
// snapshot save`.
func (s *Server) control() *control.Server {
	c := control.NewServer(s.cfg.Dirs().ControlSocket())
	ActionRenew.Handle(c, func(_ context.Context, r RenewRequest) (RenewResult, error) {
		list, err := s.pki.Renew(r.Names...)
		return RenewResult{list}, err
	})
	ActionRotate.Handle(c, s.cluster.Authorities.Rotate)
	ActionSave.Handle(c, func(ctx context.Context, r SaveRequest) (*backup.Saved, error) {
		return s.snapshots.Save(ctx, r.Name, r.Passphrase)
	})
	ActionSeal.Handle(c, func(context.Context, control.Empty) (control.Empty, error) {
		s.cluster.Record.Changed()
		return control.Empty{}, nil
	})
	ActionForget.Handle(c, s.cluster.Admission.Forget)
	ActionMoved.Handle(c, func(_ context.Context, r cluster.MovedRequest) (control.Empty, error) {
		return control.Empty{}, s.cluster.Admission.Moved(r)
	})
	ActionBegin.Handle(c, s.secrets.Begin)
	ActionFollow.Observe(c, s.secrets.Follow)
	ActionKeys.Observe(c, func(ctx context.Context, _ control.Empty) (*encryption.Status, error) {
		return s.secrets.Status(ctx)
	})
	return c
}
