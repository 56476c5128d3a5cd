package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/pki"
)

// What root's commands may have a running server do.
const (
	ActionRenew  = "certificates/renew"
	ActionRotate = "certificates/rotate-ca"
	ActionStored = "secrets-encrypt/stored"
	ActionSave   = "snapshot/save"
)

// SaveRequest asks for a snapshot; the answer is a snapshot.Entry. Name and passphrase may be left out.
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
}

// StoredRequest asks how many objects of the resources are stored with which key; the answer is
// encryption.Counts.
type StoredRequest struct {
	Resources []string `json:"resources"`
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
		ActionRotate: func(_ context.Context, raw json.RawMessage) (any, error) {
			var r RotateRequest
			if err := json.Unmarshal(raw, &r); err != nil {
				return nil, fmt.Errorf("read request: %w", err)
			}
			return Rotate(s.pki, r)
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
			return encryption.Count(ctx, st.Endpoint(), r.Resources)
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
