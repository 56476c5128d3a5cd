package server

import (
	"context"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/pki"
)

// Status is how a server is.
type Status struct {
	Advertise    string                         `json:"advertise"`
	Components   []controlplane.ComponentHealth `json:"components"`
	Datastore    *datastore.Status              `json:"datastore,omitempty"`
	Certificates []pki.Certificate              `json:"certificates"`
}

// Status asks all components. What it cannot find out it leaves out; the error says why.
func (s *Server) Status(ctx context.Context) (Status, error) {
	out := Status{Advertise: s.advertise(), Components: s.health.Report(ctx), Certificates: s.pki.Certificates()}
	st := s.datastore()
	if st == nil {
		return out, nil
	}
	d, err := st.Status(ctx)
	if err != nil {
		return out, err
	}
	out.Datastore = &d
	return out, nil
}
