package encryption

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/server/cluster/kv"
)

// SharingConfig describes one server's copy of the keys.
type SharingConfig struct {
	// File holds the encryption config of this server's API server.
	File string
	// Secret returns the secret that seals the copy in the datastore: all servers have it, and nobody else.
	Secret func() ([]byte, error)
	// Current reports whether Secret is the one in force: a copy sealed with another one is replaced then.
	Current func() bool
	// Adopted is called when Sync has put another server's configuration into File; it must not block.
	Adopted func()
	Log     *slog.Logger
}

// Sharing exchanges the encryption config between the servers that share a datastore.
type Sharing struct{ cfg SharingConfig }

// NewSharing returns the sharing of one server.
func NewSharing(cfg SharingConfig) *Sharing {
	cfg.Log = cfg.Log.With("component", "encryption")
	return &Sharing{cfg}
}

// read returns the encryption config in the datastore and its revision, 0 where there is none.
func (s *Sharing) read(ctx context.Context, c clientv3.KV) (raw []byte, revision int64, err error) {
	resp, err := c.Get(ctx, SharedKey)
	if err != nil {
		return nil, 0, fmt.Errorf("read the encryption config in the datastore: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	revision = resp.Kvs[0].ModRevision
	secret, err := s.cfg.Secret()
	if err != nil {
		return nil, revision, err
	}
	raw, err = openConfig(secret, resp.Kvs[0].Value)
	return raw, revision, err
}

func (s *Sharing) write(ctx context.Context, c clientv3.KV, raw []byte, revision int64) error {
	secret, err := s.cfg.Secret()
	if err != nil {
		return err
	}
	sealed, err := sealConfig(secret, raw)
	if err != nil {
		return err
	}
	return kv.PutIf(ctx, c, SharedKey, string(sealed), revision)
}

// Sync takes over the configuration that another server has put into the datastore, or puts this server's there.
func (s *Sharing) Sync(ctx context.Context, c clientv3.KV) error {
	own, err := os.ReadFile(s.cfg.File)
	if err != nil {
		return fmt.Errorf("read encryption config: %w", err)
	}
	if _, err := parse(own); err != nil {
		return nil // written by hand, which is done on all servers alike
	}
	shared, revision, err := s.read(ctx, c)
	order := 1
	if err == nil && revision > 0 {
		order, err = Adopt(s.cfg.File, shared)
	}
	switch {
	case errors.Is(err, ErrSealed) && s.cfg.Current():
		// Sealed with a ServiceAccount key that nobody has any more, as this server has the one that is in force.
		if err := s.write(ctx, c, own, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
			return err
		}
		s.cfg.Log.Info("the encryption config in the datastore was sealed again, with the present ServiceAccount key")
	case errors.Is(err, ErrSealed), errors.Is(err, ErrElsewhere), errors.Is(err, ErrForeign):
		s.cfg.Log.Warn("keys with which Secrets are encrypted are not taken over from other servers",
			"file", s.cfg.File, "error", err)
	case err != nil:
		return err
	case order < 0:
		s.cfg.Log.Info("keys with which Secrets are encrypted were taken over from another server")
		s.cfg.Adopted()
	case order > 0:
		if err := s.write(ctx, c, own, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
			return err
		}
	}
	return nil
}

// Put gives a configuration to all servers, before any uses it, and puts it into the file here.
func (s *Sharing) Put(ctx context.Context, c clientv3.KV, raw []byte) error {
	shared, revision, err := s.read(ctx, c)
	if err != nil && (!errors.Is(err, ErrSealed) || !s.cfg.Current()) {
		return err
	}
	order := 1
	if len(shared) > 0 {
		if order, err = Compare(raw, shared); err != nil {
			return err
		}
	}
	switch {
	case order < 0:
		return ErrElsewhere
	case order > 0:
		if err := s.write(ctx, c, raw, revision); errors.Is(err, kv.ErrRaced) {
			return ErrElsewhere
		} else if err != nil {
			return err
		}
	}
	_, err = Adopt(s.cfg.File, raw)
	return err
}
