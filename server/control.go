package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/control"
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

// RotateRequest asks to begin or to finish rotations of authorities and of the ServiceAccount key, or, with
// Status, only which are under way.
type RotateRequest struct {
	Names  []string `json:"names,omitempty"`
	From   string   `json:"from,omitempty"`
	Finish bool     `json:"finish,omitempty"`
	Force  bool     `json:"force,omitempty"`
	Status bool     `json:"status,omitempty"`
}

// RenewResult is what was renewed.
type RenewResult struct {
	Renewed []pki.Certificate `json:"renewed"`
}

// RotateResult is what a rotation has changed and which are under way now.
type RotateResult struct {
	Finished []string       `json:"finished,omitempty"`
	UnderWay []pki.Rotation `json:"underWay"`
	// Announced is what all servers are to trust before it signs; Behind are those that do not yet.
	Announced []string `json:"announced,omitempty"`
	Behind    []string `json:"behind,omitempty"`
	// Restart are servers that have to be started again before the rotation can be finished.
	Restart []string `json:"restart,omitempty"`
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
	return &control.Server{Socket: s.dirs.ControlSocket(), Actions: map[string]control.Action{
		ActionRenew: func(_ context.Context, raw json.RawMessage) (any, error) {
			var r RenewRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			list, err := s.pki.Renew(r.Names...)
			return RenewResult{list}, err
		},
		ActionRotate: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r RotateRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return s.rotate(ctx, r)
		},
		ActionForget: s.forgetAction,
		ActionMoved:  s.movedAction,
		ActionSeal: func(context.Context, json.RawMessage) (any, error) {
			s.keysChanged()
			return struct{}{}, nil
		},
		ActionStored: func(ctx context.Context, raw json.RawMessage) (any, error) {
			var r StoredRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			st := s.datastore()
			if st == nil {
				return nil, errors.New("the datastore is not open yet")
			}
			c, err := datastore.Client(ctx, st)
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
			return struct{}{}, s.shareEncryption(ctx, r.Config)
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

// Rotate does what is asked for; it is also called for a server that does not run.
func Rotate(p *pki.PKI, r RotateRequest) (RotateResult, error) {
	var out RotateResult
	var err error
	switch {
	case r.Status:
	case r.Finish:
		out.Finished, err = p.FinishRotation(r.Names)
	default:
		err = p.BeginRotation(r.Names, r.From)
	}
	out.UnderWay = append([]pki.Rotation{}, p.Rotations()...)
	return out, err
}
