package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// What root's commands may have a running server do.
const (
	ActionRenew  = "certificates/renew"
	ActionRotate = "certificates/rotate-ca"
	ActionStored = "secrets-encrypt/stored"
	ActionShare  = "secrets-encrypt/share"
	ActionSave   = "snapshot/save"
	ActionSeal   = "keys/seal"
	ActionForget = "servers/forget"
	ActionMoved  = "servers/moved"
)

// SaveRequest asks for a snapshot; the answer is a backup.Saved. Name and passphrase may be left out.
type SaveRequest struct {
	Name       string `json:"name,omitempty"`
	Passphrase string `json:"passphrase,omitempty"`
}

// RenewRequest asks to issue leaves anew: those named or all.
type RenewRequest struct {
	Names []string `json:"names,omitempty"`
}

// RenewResult is what was renewed.
type RenewResult struct {
	Renewed []pki.Certificate `json:"renewed"`
}

// StoredRequest asks how many objects of the resources are stored with which key; the answer is
// encryption.Counts.
type StoredRequest struct {
	Resources []string `json:"resources"`
}

// ShareRequest asks to give an encryption config to all servers of the cluster, before any uses it.
type ShareRequest struct {
	Config []byte `json:"config"`
}

// control is the socket behind `umiak certificate`, `umiak secrets-encrypt` and `umiak snapshot save`.
func (s *Server) control() *control.Server {
	return &control.Server{Socket: s.cfg.Dirs().ControlSocket(), Actions: map[string]control.Action{
		ActionRenew: func(_ context.Context, raw json.RawMessage) (any, error) {
			var r RenewRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			list, err := s.pki.Renew(r.Names...)
			return RenewResult{list}, err
		},
		ActionRotate: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r cluster.RotateRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return s.cluster.Authorities.Rotate(ctx, r)
		},
		ActionForget: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r cluster.ForgetRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return s.cluster.Admission.Forget(ctx, r)
		},
		ActionMoved: func(_ context.Context, raw json.RawMessage) (any, error) {
			var r cluster.MovedRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return struct{}{}, s.cluster.Admission.Moved(r)
		},
		ActionSeal: func(context.Context, json.RawMessage) (any, error) {
			s.cluster.Record.Changed()
			return struct{}{}, nil
		},
		ActionStored: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r StoredRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			c, err := s.store.Client(ctx)
			if err != nil {
				return nil, err
			}
			defer c.Close() //nolint:errcheck // only a connection
			return encryption.Count(ctx, c, r.Resources)
		},
		ActionShare: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r ShareRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, errors.New("read request: it is not JSON") // its words might quote a key
			}
			return struct{}{}, s.cluster.Keys.ShareEncryption(ctx, r.Config)
		},
		ActionSave: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r SaveRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return s.snapshots.Save(ctx, r.Name, r.Passphrase)
		},
	}}
}
