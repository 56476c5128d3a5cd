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
	"github.com/umiak-io/umiak/server/storage"
)

// SaveStopped makes a snapshot of a server that does not run.
func SaveStopped(ctx context.Context, cfg Config, log *slog.Logger, name string) (_ *backup.Saved, err error) {
	dirs := cfg.Dirs()
	if _, err := os.Stat(dirs.Server()); errors.Is(err, fs.ErrNotExist) { // the lock would make the data directory
		return nil, fmt.Errorf("save snapshot: no server has run here: there is no %s", dirs.Server())
	}
	release, err := instance.Acquire(dirs)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	defer release()
	files, err := snapshot.Files(dirs.Server())
	if err == nil {
		_, err = snapshot.Cluster(files)
	}
	if err != nil { // before Open makes an empty datastore
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	if err := cfg.ClaimName(); err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	addrs, err := Addresses(ctx, cfg, log)
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	var out *backup.Saved
	err = storage.Once(ctx, cfg.datastoreConfig(cfg.advertise(addrs), log), func(st datastore.Store) (err error) {
		out, err = cfg.snapshotKeeper(func() snapshot.Source { return st }, log).Save(ctx, name, "")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	return out, nil
}
