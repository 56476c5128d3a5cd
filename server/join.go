package server

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/cluster"
)

// Start holds what Addresses and Join find out before New.
type Start struct {
	// Addresses are the machine's, as Addresses returns them.
	Addresses *nodeip.Tracker
	// Members are those of the etcd cluster that takes this server in, as Join returns them. They count only while
	// the server has no state of its own.
	Members []etcd.Member
	// Failing is called with true when the datastore stops taking writes, and with false when it takes them again;
	// it may be nil.
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
	if cluster.SharedKind(dc) != "" {
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
