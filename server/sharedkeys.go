package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/server/cluster/kv"
	"github.com/umiak-io/umiak/server/encryption"
)

// sealSecret is what the servers of a cluster have and nobody else.
func (s *Server) sealSecret() ([]byte, error) {
	raw, err := os.ReadFile(s.pki.ServiceAccountKey())
	if err != nil {
		return nil, fmt.Errorf("read the ServiceAccount key: %w", err)
	}
	return raw, nil
}

// sharedEncryption is the encryption config that the datastore holds for all servers, and its revision, 0 where
// there is none.
func (s *Server) sharedEncryption(ctx context.Context, c clientv3.KV) (raw []byte, revision int64, err error) {
	resp, err := c.Get(ctx, encryption.SharedKey)
	if err != nil {
		return nil, 0, fmt.Errorf("read the encryption config in the datastore: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	revision = resp.Kvs[0].ModRevision
	secret, err := s.sealSecret()
	if err != nil {
		return nil, revision, err
	}
	raw, err = encryption.Open(secret, resp.Kvs[0].Value)
	return raw, revision, err
}

func (s *Server) putEncryption(ctx context.Context, c clientv3.KV, raw []byte, revision int64) error {
	secret, err := s.sealSecret()
	if err != nil {
		return err
	}
	sealed, err := encryption.Seal(secret, raw)
	if err != nil {
		return err
	}
	return kv.PutIf(ctx, c, encryption.SharedKey, string(sealed), revision)
}

// syncEncryption takes over what another server has put into the datastore, or puts there what this one has.
func (s *Server) syncEncryption(ctx context.Context, c clientv3.KV) error {
	own, err := os.ReadFile(s.dirs.EncryptionConfig())
	if err != nil {
		return fmt.Errorf("read encryption config: %w", err)
	}
	if !encryption.Ours(own) {
		return nil // whoever made it by hand does so on all servers
	}
	shared, revision, err := s.sharedEncryption(ctx, c)
	order := 1
	if err == nil && revision > 0 {
		order, err = encryption.Adopt(s.dirs.EncryptionConfig(), shared)
	}
	switch {
	case errors.Is(err, encryption.ErrSealed) && s.rotation != nil && s.rotation.Current():
		// Sealed with a ServiceAccount key that nobody has any more, as this server has the one that is in force.
		if err := s.putEncryption(ctx, c, own, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
			return err
		}
		s.log.Info("the encryption config in the datastore was sealed anew, with the ServiceAccount key of now", "component", "encryption")
	case errors.Is(err, encryption.ErrSealed), errors.Is(err, encryption.ErrElsewhere), errors.Is(err, encryption.ErrForeign):
		s.log.Warn("keys with which Secrets are encrypted are not taken over from other servers", "component", "encryption", "file", s.dirs.EncryptionConfig(), "error", err)
	case err != nil:
		return err
	case order < 0:
		s.log.Info("keys with which Secrets are encrypted were taken over from another server", "component", "encryption")
	case order > 0:
		if err := s.putEncryption(ctx, c, own, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
			return err
		}
	}
	return nil
}

// shareEncryption gives an encryption config to all servers, before any uses it, and puts it in place here.
func (s *Server) shareEncryption(ctx context.Context, raw []byte) error {
	if s.others == nil {
		_, err := encryption.Adopt(s.dirs.EncryptionConfig(), raw)
		return err
	}
	if err := s.allServe(); err != nil {
		return err
	}
	return s.storeEncryption(ctx, raw)
}

func (s *Server) storeEncryption(ctx context.Context, raw []byte) error {
	st := s.datastore()
	if st == nil {
		return errors.New("the datastore is not open yet")
	}
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	if err := s.syncAuthorities(ctx, c); err != nil {
		return err
	}
	shared, revision, err := s.sharedEncryption(ctx, c)
	if err != nil && (!errors.Is(err, encryption.ErrSealed) || !s.rotation.Current()) {
		return err
	}
	order := 1
	if len(shared) > 0 {
		if order, err = encryption.Compare(raw, shared); err != nil {
			return err
		}
	}
	switch {
	case order < 0:
		return encryption.ErrElsewhere
	case order > 0:
		if err := s.putEncryption(ctx, c, raw, revision); errors.Is(err, kv.ErrRaced) {
			return encryption.ErrElsewhere
		} else if err != nil {
			return err
		}
	}
	if _, err := encryption.Adopt(s.dirs.EncryptionConfig(), raw); err != nil {
		return err
	}
	s.keysChanged() // for servers that join
	return nil
}

// allServe fails while a server of the cluster does not serve: it would go on with the old keys when it is back. Of
// a database that somebody else runs nobody knows its servers; they take the keys over before they serve.
func (s *Server) allServe() error {
	cluster := s.EtcdCluster()
	if cluster == nil {
		return nil
	}
	addrs, _ := s.others.list()
	serving := map[string]bool{}
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		serving[host] = true
	}
	var away []string
	for _, m := range cluster.Members() {
		if host, _, _ := net.SplitHostPort(m.Peer); !m.Self && !serving[host] {
			away = append(away, cmp.Or(m.Name, m.Peer))
		}
	}
	if len(away) == 0 {
		return nil
	}
	return fmt.Errorf("servers of the cluster do not serve, and would not have the new keys: %s; start them and try again, or give them up with `umiak server forget NAME`", strings.Join(away, ", "))
}

// followShared takes over what other servers put into the datastore: authorities and the keys of Secrets.
func (s *Server) followShared(ctx context.Context, ready func()) error {
	ready()
	for {
		err := s.watchShared(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.log.Debug("what servers share in the datastore is watched again", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(5 * time.Second):
		}
	}
}

func (s *Server) watchShared(ctx context.Context) error {
	c, err := datastore.Client(ctx, s.datastore())
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	w := c.Watch(clientv3.WithRequireLeader(ctx), sharedPrefix, clientv3.WithPrefix())
	for {
		if err := s.syncAuthorities(ctx, c); err != nil {
			s.log.Warn("cannot take over the cluster's authorities", "component", "certificates", "error", err)
			return err
		}
		if err := s.syncEncryption(ctx, c); err != nil {
			return err
		}
		r, open := <-w
		if err := r.Err(); err != nil || !open {
			return errors.Join(err, errors.New("the watch has ended"))
		}
	}
}

// sharedPrefix is that of all that servers keep in the datastore for each other.
const sharedPrefix = "/umiak/"
