package datastore

import (
	"context"
	"errors"
	"net"

	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/snapshot"
)

// foreign is a Store on somebody else's database.
type foreign struct {
	*external.Store
	cfg Config
}

func openExternal(ctx context.Context, cfg Config) (Store, error) {
	s, err := external.Open(ctx, external.Config{
		Endpoint: cfg.Endpoint, TLS: cfg.TLS, Log: cfg.Log, Registerer: cfg.Registerer,
		EmulatedVersion: emulatedVersion, Progress: progressInterval, Failing: cfg.Failing,
	}, cfg.Socket)
	if err != nil {
		return nil, err
	}
	return foreign{s, cfg}, nil
}

// Run serves until ctx ends, then closes the connections.
func (s foreign) Run(ctx context.Context, ready func()) error {
	l, err := listen(ctx, s.cfg.Socket)
	if err != nil {
		done, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, s.Store.Run(done, nil, func() {}))
	}
	defer func(l net.Listener) { _ = l.Close() }(l) // again, where it was served
	return s.Store.Run(ctx, l, ready)
}

func (s foreign) VolatileEndpoint() string { return "" }

func (s foreign) Status(ctx context.Context) (Status, error) {
	st, err := s.Store.Status(ctx)
	return Status{Backend: st.Kind, External: &st}, err
}

func (s foreign) State(ctx context.Context) (snapshot.State, error) {
	rev, err := s.Revision(ctx) // it can be read also while it takes no writes
	return snapshot.State{Backend: s.Kind(), Revision: rev, Epoch: rev>>epochBits + 1}, err
}
