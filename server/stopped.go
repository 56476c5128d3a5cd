package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/server/backup"
)

// SaveStopped makes a snapshot of a server that does not run.
func SaveStopped(ctx context.Context, cfg Config, log *slog.Logger, name string) (_ *backup.Saved, err error) {
	s := &Server{cfg: cfg, dirs: cfg.Dirs(), log: log}
	if _, err := os.Stat(s.dirs.Server()); errors.Is(err, fs.ErrNotExist) { // the lock would make the data directory
		return nil, fmt.Errorf("save snapshot: no server has run here: there is no %s", s.dirs.Server())
	}
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
	if err := s.claimName(); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if s.addrs, err = Addresses(ctx, s.cfg, log); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	s.bind = bindAddress(s.cfg)
	dc := s.datastoreConfig()
	dc.Registerer = nil
	k := s.keeper()
	var out *backup.Saved
	err = withStore(ctx, dc, func(st datastore.Store) (err error) {
		k.Source = func() snapshot.Source { return st }
		out, err = k.Save(ctx, name, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	return out, nil
}
