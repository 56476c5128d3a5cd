package cluster

import (
	"context"
	"errors"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/server/encryption"
)

// sharedPrefix begins the keys of everything that servers write into the datastore for each other.
const sharedPrefix = "/umiak/"

// rewatchDelay is the pause after the watch on sharedPrefix has ended.
const rewatchDelay = 5 * time.Second

// SharedKeys takes over from the datastore what other servers replace while all run: authorities and the keys of
// Secrets.
type SharedKeys struct {
	cfg         Config
	peers       *Peers
	authorities *Authorities
	encryption  *encryption.Sharing
	stale       lifecycle.Signal // the record's
	adopted     lifecycle.Signal
	log         *slog.Logger
}

// ShareEncryption gives an encryption config to all servers, before any uses it, and puts it into the file here. All
// servers have to serve.
func (k *SharedKeys) ShareEncryption(ctx context.Context, raw []byte) error {
	if k.cfg.Shared == "" {
		_, err := encryption.Adopt(k.cfg.Dirs.EncryptionConfig(), raw)
		return err
	}
	if err := k.peers.allServe(k.cfg.Datastore.Members()); err != nil {
		return err
	}
	c, err := k.cfg.Datastore.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	if err := k.authorities.sync(ctx, c); err != nil {
		return err
	}
	if err := k.encryption.Put(ctx, c, raw); err != nil {
		return err
	}
	k.stale.Set() // for servers that join
	return nil
}

// EncryptionAdopted yields a value when this server has taken an encryption config over from another one.
func (k *SharedKeys) EncryptionAdopted() <-chan struct{} { return k.adopted }

// Run follows the datastore until ctx ends.
func (k *SharedKeys) Run(ctx context.Context, ready func()) error {
	ready()
	pauses := retry.Backoff{First: rewatchDelay, Limit: rewatchDelay}
	retry.Forever(ctx, pauses, 0, func(err error, _ time.Duration) {
		k.log.Debug("the watch on what servers share in the datastore begins again", "error", err)
	}, k.watch)
	return nil
}

func (k *SharedKeys) watch(ctx context.Context) error {
	c, err := k.cfg.Datastore.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	w := c.Watch(clientv3.WithRequireLeader(ctx), sharedPrefix, clientv3.WithPrefix())
	for {
		if err := k.authorities.sync(ctx, c); err != nil {
			k.log.Warn("cannot take over the cluster's authorities", "component", "certificates", "error", err)
			return err
		}
		if err := k.encryption.Sync(ctx, c); err != nil {
			return err
		}
		r, open := <-w
		if err := r.Err(); err != nil || !open {
			return errors.Join(err, errors.New("the watch has ended"))
		}
	}
}
