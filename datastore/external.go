package datastore

import (
	"context"
	"errors"
	"net"

	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/snapshot"
)

// externalStore is a Store on a database that the user runs.
type externalStore struct {
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
	return externalStore{s, cfg}, nil
}

// Run serves the database until ctx ends, then closes the connections.
func (s externalStore) Run(ctx context.Context, ready func()) error {
	l, err := listen(ctx, s.cfg.Socket)
	if err != nil {
		done, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, s.Store.Run(done, nil, func() {}))
	}
	defer func(l net.Listener) { _ = l.Close() }(l) // the gRPC server has closed it already if it ran
	return s.Store.Run(ctx, l, ready)
}

func (s externalStore) VolatileEndpoint() string { return "" }

func (s externalStore) Status(ctx context.Context) (Status, error) {
	st, err := s.Store.Status(ctx)
	return Status{Backend: st.Kind, External: &st}, err
}

func (s externalStore) State(ctx context.Context) (snapshot.State, error) {
	rev, err := s.Revision(ctx) // works while the database takes no writes, too
	return snapshot.State{Backend: s.Kind(), Revision: rev, Epoch: rev>>snapshot.EpochBits + 1}, err
}
