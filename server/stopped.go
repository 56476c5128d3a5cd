package server

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/instance"
)

// SaveStopped makes a snapshot of a server that does not run.
func SaveStopped(ctx context.Context, cfg Config, log *slog.Logger, name string) (_ *snapshot.Entry, err error) {
	s := &Server{cfg: cfg, dirs: cfg.Dirs(), log: log}
	release, err := instance.Acquire(s.dirs)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	defer release()
	files, err := snapshot.Files(s.dirs.Server())
	if err == nil {
		_, err = snapshot.Cluster(files)
	}
	if err != nil { // before Open makes an empty datastore
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if s.advertise, err = advertiseAddress(cfg); err != nil && datastore.Clustered(s.datastoreConfig()) {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	s.bind = bindAddress(cfg)
	dc := s.datastoreConfig()
	dc.Registerer = nil
	st, err := datastore.Open(ctx, dc)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	run, stop := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(run, func() { close(ready) }) }()
	defer func() {
		stop()
		if e := <-done; err == nil {
			err = e
		}
	}()
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	k, err := s.keeper()
	if err != nil {
		return nil, err
	}
	k.Source = func() snapshot.Source { return st }
	return k.Save(ctx, name, "")
}
