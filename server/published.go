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
	"github.com/umiak-io/umiak/internal/joinapi"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/join"
	"github.com/umiak-io/umiak/server/keys"
)

// errForeign means that the datastore belongs to another cluster.
var errForeign = errors.New("the datastore holds another cluster than the one whose keys are in data-dir/server/pki; with its server token as `token`, and without that folder, this server joins it")

// record reads what the datastore keeps about the cluster, and the revision of that, 0 if there is nothing.
func record(ctx context.Context, c clientv3.KV) (r keys.Record, revision int64, err error) {
	resp, err := c.Get(ctx, keys.Key)
	if err != nil {
		return r, 0, fmt.Errorf("read the cluster's record: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return r, 0, nil
	}
	r, err = keys.Parse(resp.Kvs[0].Value)
	return r, resp.Kvs[0].ModRevision, err
}

// errRaced means that another server has written the record first.
var errRaced = errors.New("another server has written the cluster's record at the same time")

func putRecord(ctx context.Context, c clientv3.KV, r keys.Record, revision int64) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	resp, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(keys.Key), "=", revision)).
		Then(clientv3.OpPut(keys.Key, string(raw))).Else(clientv3.OpGet(keys.Key)).Commit()
	if err != nil {
		return fmt.Errorf("write the cluster's record: %w", err)
	}
	if !resp.Succeeded {
		return errRaced
	}
	return nil
}

// claim makes the datastore this cluster's before anything is written there, or finds that it is another's: two
// servers may start with an empty database at once.
func (s *Server) claim(ctx context.Context, st datastore.Store) error {
	ca, former, err := s.caHash()
	if err != nil {
		return err
	}
	c, err := datastore.Client(ctx, st)
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	for {
		r, revision, err := record(ctx, c)
		switch {
		case err != nil:
			return err
		case revision == 0:
			if err := putRecord(ctx, c, keys.Record{CA: ca, Settings: s.cfg.shared()}, 0); !errors.Is(err, errRaced) {
				return err
			}
		case r.CA != ca && !slices.Contains(former, r.CA):
			return errForeign
		default:
			return nil
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
	raw, err := os.ReadFile(s.dirs.ServerToken())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // rotated on another server, which has sealed them
	}
	if err != nil {
		return fmt.Errorf("read the server token: %w", err)
	}
	tok, err := token.Parse(string(raw))
	if err != nil {
		return fmt.Errorf("read the server token: %w", err)
	}
	files, err := keys.Collect(s.dirs)
	if err != nil {
		return err
	}
	ca, _, err := s.caHash()
	if err != nil {
		return err
	}
	c, err := datastore.Client(ctx, s.datastore())
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // only a connection
	r, revision, err := record(ctx, c)
	if err != nil {
		return err
	}
	seal, err := keys.SealOf(files, tok.Secret)
	if err != nil {
		return err
	}
	settings := s.cfg.shared()
	if r.Seal == seal && r.CA == ca && slices.Equal(r.Settings, settings) {
		return nil
	}
	if diff := joinapi.Differences(r.Settings, settings); len(diff) > 0 {
		if list, _ := s.others.list(); len(list) > 0 {
			return fmt.Errorf("%w, of which %s run: %s", errSettings, strings.Join(list, ", "), join.Describe(diff))
		}
	}
	r = keys.Record{CA: ca, Settings: settings}
	if err := r.Put(files, tok.Secret); err != nil {
		return err
	}
	return putRecord(ctx, c, r, revision)
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
			return errors.New("another server is making the cluster in this database at the moment; start this one when that one runs")
		}
		text, err := token.FromSettings(cfg.Token, cfg.TokenFile)
		if err != nil {
			return fmt.Errorf("token-file: %w", err)
		}
		if text == "" {
			return errors.New("the database holds a cluster: set its server token as token (data-dir/server/token on another server)")
		}
		tok, err := token.Parse(text)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if diff := joinapi.Differences(r.Settings, cfg.shared()); len(diff) > 0 {
			return errors.New(join.Describe(diff))
		}
		files, err := r.Files(tok.Secret)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if err := keys.Place(cfg.Dirs(), files); err != nil {
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
