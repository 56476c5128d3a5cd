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
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/storage"
)

// SaveStopped makes a snapshot of a server that does not run.
func SaveStopped(ctx context.Context, cfg Config, log *slog.Logger, name string) (_ *backup.Saved, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save snapshot: %w", err)
		}
	}()
	dir := cfg.Dirs().Server()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) { // the lock would make the data directory
		return nil, fmt.Errorf("no server has run here: there is no %s", dir)
	}
	release, err := instance.Acquire(cfg.Dirs())
	if err != nil {
		return nil, err
	}
	defer release()
	files, err := snapshot.Files(dir)
	if err == nil {
		_, err = snapshot.Cluster(files)
	}
	if err != nil { // before Once makes an empty datastore
		return nil, err
	}
	if err := cfg.ClaimName(); err != nil {
		return nil, err
	}
	addrs, err := Addresses(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	now, _ := addrs.Now()
	ip, _ := advertise.Choose(cfg.AdvertiseAddress, cfg.ServiceCIDR, now.IPs) // none is needed: nobody connects
	var out *backup.Saved
	err = storage.Once(ctx, cfg.datastoreConfig(ip, log), func(st datastore.Store) (err error) {
		keeper := backup.New(cfg.Snapshots, backup.Source{Dirs: cfg.Dirs(), Node: cfg.NodeName,
			Datastore: func() snapshot.Source { return st }}, log)
		out, err = keeper.Save(ctx, name, "")
		return err
	})
	return out, err
}
