package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/cluster/kv"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/joinapi"
)

// errForeign means that the datastore belongs to another cluster.
var errForeign = errors.New("the datastore holds another cluster than the one whose keys are in data-dir/server/pki; with its server token as `token`, and without that folder, this server joins it. If it was a server of this cluster: the cluster's keys were replaced while it was away; run `umiak cleanup --purge`, and let it join again")

// record reads what the datastore keeps about the cluster, and the revision of that, 0 if there is nothing.
func record(ctx context.Context, c clientv3.KV) (r sharedfiles.Record, revision int64, err error) {
	resp, err := c.Get(ctx, sharedfiles.Key)
	if err != nil {
		return r, 0, fmt.Errorf("read the cluster's record: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return r, 0, nil
	}
	r, err = sharedfiles.Parse(resp.Kvs[0].Value)
	return r, resp.Kvs[0].ModRevision, err
}

func putRecord(ctx context.Context, c clientv3.KV, r sharedfiles.Record, revision int64) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	return kv.PutIf(ctx, c, sharedfiles.Key, string(raw), revision)
}

// claim makes the datastore this cluster's before anything is written there, or finds that it is another's: two
// servers may start with an empty database at once. Then all keys are those of the others: they may have been rotated
// while this server was away. With own the keys that are here count. It returns errReopen where the datastore has been
// opened with certificates that are not in force.
func (s *Server) claim(ctx context.Context, st datastore.Store, own bool) error {
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	again, sealed := s.claimAuthorities(ctx, c, own)
	if sealed != nil && !errors.Is(sealed, rotation.ErrSealed) {
		return sealed
	}
	for {
		ca, former, err := s.caHash()
		if err != nil {
			return err
		}
		r, revision, err := record(ctx, c)
		switch {
		case err != nil:
			return err
		case sealed != nil && revision == 0:
			// Another server with other keys was faster with those, and is about to write the record. It is that one's cluster.
			return errForeign
		case revision == 0 || own && r.CA != ca:
			if err := putRecord(ctx, c, sharedfiles.Record{CA: ca, Settings: s.cfg.shared()}, revision); err != nil && !errors.Is(err, kv.ErrRaced) {
				return err
			}
			own = false
		case r.CA != ca && !slices.Contains(former, r.CA):
			return errForeign
		case sealed != nil:
			return fmt.Errorf("%w: run `umiak cleanup --purge` and let this server join again", sealed)
		case again:
			return errReopen
		default:
			return s.syncEncryption(ctx, c)
		}
	}
}

// runKeys keeps the cluster's keys in the datastore, sealed with the server token.
func (s *Server) runKeys(ctx context.Context, ready func()) error {
	ready()
	for {
		var refused error
		err := s.insist(ctx, func() error {
			err := s.publish(ctx)
			if errors.Is(err, errSettings) {
				refused, err = err, nil
			}
			return err
		})
		switch {
		case refused != nil:
			return refused
		case err != nil: // ctx has ended
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.keysWake:
		}
	}
}

// keysChanged has the keys or the token looked at again.
func (s *Server) keysChanged() {
	select {
	case s.keysWake <- struct{}{}:
	default:
	}
}

// errSettings means that this server would tell nodes something else than the others.
var errSettings = errors.New("this server's settings are not those of the others")

// publish writes the record where it is not as it should be.
func (s *Server) publish(ctx context.Context) error {
	c, err := datastore.Client(ctx, s.datastore())
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	have, revision, err := record(ctx, c)
	if err != nil {
		return err
	}
	want, changed, err := s.nextRecord(have)
	if err != nil || !changed {
		return err
	}
	if diff := joinwire.Differences(have.Settings, want.Settings); len(diff) > 0 {
		if list, _ := s.others.list(); len(list) > 0 {
			return fmt.Errorf("%w, of which %s run: %s", errSettings, strings.Join(list, ", "), joinapi.Describe(diff))
		}
	}
	return putRecord(ctx, c, want, revision)
}

// nextRecord is what the record should be. Without a server token whose secret is known here it has no keys: the token was
// revoked, or rotated from a machine that is no server. They are sealed again once there is one.
func (s *Server) nextRecord(have sharedfiles.Record) (want sharedfiles.Record, changed bool, err error) {
	ca, _, err := s.caHash()
	if err != nil {
		return want, false, err
	}
	want = sharedfiles.Record{CA: ca, Settings: s.cfg.shared()}
	same := have.CA == want.CA && slices.Equal(have.Settings, want.Settings)
	raw, err := os.ReadFile(s.dirs.ServerToken())
	if errors.Is(err, fs.ErrNotExist) {
		// The token that the keys are sealed with was revoked: who has it opens nothing any more.
		return want, !same || have.Sealed != nil, nil
	}
	if err != nil {
		return want, false, fmt.Errorf("read the server token: %w", err)
	}
	tok, err := token.Parse(string(raw))
	if err != nil {
		return want, false, fmt.Errorf("read the server token: %w", err)
	}
	files, err := sharedfiles.Collect(s.dirs)
	if err != nil {
		return want, false, err
	}
	seal, err := sharedfiles.SealOf(files, tok.Secret)
	if err != nil || same && have.Seal == seal {
		return want, false, err
	}
	return want, true, want.Put(files, tok.Secret)
}

// recall gets the cluster's keys from a database that several servers share, by the server token. Where the database
// is empty, this is a new cluster.
func recall(ctx context.Context, cfg Config, log *slog.Logger) error {
	s := &Server{cfg: cfg, dirs: cfg.Dirs(), log: log}
	dc := s.datastoreConfig()
	dc.Registerer = nil
	return withStore(ctx, dc, func(st datastore.Store) error {
		c, err := datastore.Client(ctx, st)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // only a connection
		r, revision, err := record(ctx, c)
		switch {
		case err != nil || revision == 0:
			return err
		case r.Sealed == nil:
			return errors.New("the cluster's keys are not in the database: start this server when the first one runs; if it does, run `umiak token rotate server` there and set the new token here")
		}
		tok, err := cfg.joinToken()
		if err != nil {
			return err
		}
		if tok.Secret == "" {
			return errors.New("the database holds a cluster: set its server token as token (data-dir/server/token on another server)")
		}
		if diff := joinwire.Differences(r.Settings, cfg.shared()); len(diff) > 0 {
			return errors.New(joinapi.Describe(diff))
		}
		files, err := r.Files(tok.Secret)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if err := errors.Join(sharedfiles.MarkJoined(cfg.Dirs()), sharedfiles.Place(cfg.Dirs(), files)); err != nil {
			return err
		}
		log.Info("this server is one more of the cluster in the database")
		return nil
	})
}

// withStore runs a store for as long as use takes.
func withStore(ctx context.Context, dc datastore.Config, use func(datastore.Store) error) (err error) {
	st, err := datastore.Open(ctx, dc)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(run, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		stop()
		return err
	}
	err = use(st)
	stop()
	return errors.Join(err, <-done)
}

// claimTime is how long a datastore that serves may take to say whose it is.
const claimTime = 30 * time.Second
