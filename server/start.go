package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/storage"
)

// Start is what is found out before a server is made.
type Start struct {
	// Addresses are the machine's, as Addresses returns them.
	Addresses *nodeip.Tracker
	// Members are those of the etcd cluster that takes this server in, as Join returns them. They count only while
	// the server has no state of its own.
	Members []etcd.Member
	// Failing is called with true when the datastore stops taking writes, and with false when it takes them again;
	// nil means that nobody wants to know.
	Failing func(bool)
}

// Addresses finds the node's addresses. For a server that others have to reach it waits until there is one; a server
// alone starts without, and publishes the address when it comes.
func Addresses(ctx context.Context, cfg Config, log *slog.Logger) (*nodeip.Tracker, error) {
	t, err := nodeip.New(nodeip.Config{Asked: cfg.NodeIP, Want: nodeip.FamiliesOf(cfg.ClusterCIDR),
		File: cfg.Dirs().Addresses(), Log: log})
	if err != nil {
		return nil, err
	}
	if !cfg.AdvertiseAddress.IsValid() && (cfg.Server != "" || datastore.Shared(cfg.datastoreConfig("", log))) {
		if err := t.Wait(ctx); err != nil {
			return nil, fmt.Errorf("wait for an address at which other servers reach this one: %w", err)
		}
	}
	return t, nil
}

// Join makes this machine another server of a cluster, if cfg wants it to be one and it is not yet; see cluster.Join.
// addrs are the machine's, and ClaimName has settled its name.
func Join(ctx context.Context, cfg Config, addrs *nodeip.Tracker, log *slog.Logger) ([]etcd.Member, error) {
	now, _ := addrs.Now()
	ip, err := advertise.Choose(cfg.AdvertiseAddress, cfg.ServiceCIDR, now.IPs)
	if err != nil && cfg.Server != "" {
		return nil, fmt.Errorf("join the cluster of %s: %w", cfg.Server, err)
	}
	tok, err := cfg.joinToken()
	if err != nil {
		return nil, err
	}
	return cluster.Join(ctx, cluster.JoinConfig{
		Server: cfg.Server, Token: tok, Dirs: cfg.Dirs(), Datastore: cfg.datastoreConfig(ip, log),
		Settings: cfg.shared(), Log: log,
	})
}

// settle checks the settings, fixes the address that other servers get of this one, and settles its name.
func (c *Config) settle(start Start, log *slog.Logger) error {
	if err := c.ValidateStart(); err != nil {
		return err
	}
	dc := c.datastoreConfig("", log)
	dc.Etcd.Join = start.Members
	if sharedDatastore(dc) != "" {
		if err := advertise.Take(start.Addresses); err != nil {
			return err
		}
	}
	n, err := c.claimName()
	if err != nil {
		return err
	}
	if n.Remark != "" && c.DisableAgent { // a node in this process logs it
		log.Warn(n.Remark)
	}
	return nil
}

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
		out, err = cfg.snapshotKeeper(func() snapshot.Source { return st }, log).Save(ctx, name, "")
		return err
	})
	return out, err
}
