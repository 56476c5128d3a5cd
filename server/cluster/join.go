package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
)

// JoinConfig describes the server that joins.
type JoinConfig struct {
	// Server is the URL of the server to ask; "" means none: with a database outside, the keys are there.
	Server string
	// Token is the one that the settings name, zero if none.
	Token token.Token
	Dirs  layout.Dirs
	// Datastore is the configuration with which this server opens its datastore.
	Datastore datastore.Config
	// Settings are those that all servers must have alike.
	Settings []joinwire.Setting
	Log      *slog.Logger
}

// Join makes this machine another server of a cluster, if it is to be one and is not yet. With an external database,
// the cluster's keys are in it. Otherwise the server that cfg names takes this one in: Join waits for that server,
// writes the cluster's keys, and returns the members of the etcd cluster. It may be cancelled, and continues at the
// next start. The data directory must be locked by the caller.
func Join(ctx context.Context, cfg JoinConfig) ([]etcd.Member, error) {
	if cfg.Server == "" && cfg.Datastore.Endpoint != "" && !sharedfiles.Placed(cfg.Dirs) {
		if err := recall(ctx, cfg); err != nil {
			return nil, fmt.Errorf("start with the database: %w", err)
		}
		return nil, nil
	}
	if cfg.Datastore.Etcd.Reset { // this server is the cluster's first one from now on
		return nil, sharedfiles.UnmarkJoined(cfg.Dirs)
	}
	if cfg.Server == "" {
		return nil, nil
	}
	members, err := join(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("join the cluster of %s: %w", cfg.Server, err)
	}
	return members, nil
}

func join(ctx context.Context, cfg JoinConfig) ([]etcd.Member, error) {
	j, err := newJoining(cfg)
	if err != nil {
		return nil, err
	}
	if joined, err := j.before(); err != nil || joined {
		return nil, err
	}
	if j.token.Secret == "" {
		return nil, errors.New("a token is needed (token or token-file); `umiak token create --kind server` on a server prints one")
	}
	if j.token.CA == "" {
		return nil, fmt.Errorf("token: it is a password, which says nothing about the server at %s, so it is not sent: set the line "+
			"that is in data-dir/server/token there, or what `umiak token create --kind server` prints", j.addr)
	}
	// A server without a node, too, protects its name with a password.
	if err := os.MkdirAll(j.dirs.Agent(), 0o700); err != nil {
		return nil, err
	}
	if j.request.Password, err = token.SecretFile(j.dirs.NodePassword()); err != nil {
		return nil, err
	}
	var resp *joinwire.ServerResponse
	err = joinclient.Retry(ctx, func(ctx context.Context) (err error) {
		resp, err = j.ask(ctx)
		return err
	}, j.logWaiting)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(sharedfiles.MarkJoined(j.dirs), sharedfiles.Place(j.dirs, resp.Files)); err != nil {
		return nil, err
	}
	var members []etcd.Member
	for _, m := range resp.Members {
		members = append(members, etcd.Member{ID: m.ID, Name: m.Name, Peer: m.Peer, Learner: m.Learner})
	}
	j.log.Info("taken in as a server", "by", j.addr, "members", len(members))
	return members, nil
}

// joining is a machine that becomes a server of a cluster.
type joining struct {
	dirs    layout.Dirs
	log     *slog.Logger
	addr    string // of a server, HOST:PORT
	token   token.Token
	request joinwire.ServerRequest
	listen  string // where members connect to this server

	waiting   retry.News // the reason for waiting in the log
	unreached []string   // members that were named in the log
}

func newJoining(cfg JoinConfig) (*joining, error) {
	j := &joining{dirs: cfg.Dirs, log: cfg.Log.With("component", "join"), token: cfg.Token,
		listen: cfg.Datastore.Etcd.Listen}
	var err error
	if j.addr, err = joinclient.Address(cfg.Server); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	e := cfg.Datastore.Etcd
	j.request = joinwire.ServerRequest{Name: e.Name, Datastore: joinwire.Etcd, Peer: e.Peer, Settings: cfg.Settings}
	if cfg.Datastore.Endpoint != "" {
		j.request.Datastore, j.request.Peer = joinwire.External, ""
	}
	return j, nil
}

// before reports whether this machine is a server of a cluster already. It fails for a server of another cluster, whose
// state is not overwritten.
func (j *joining) before() (bool, error) {
	switch backend, path := datastore.Present(j.dirs.DB()); backend {
	case datastore.BackendEtcd:
		if !datastore.Joining(j.dirs.DB()) {
			return true, nil
		}
		j.log.Info("this server was taken in and has never become a full member; it joins again")
		if err := datastore.GiveUpJoining(j.dirs.DB()); err != nil {
			return false, err
		}
	case datastore.BackendSQLite:
		return false, fmt.Errorf("this machine has a cluster of its own, whose state is in %s: run `umiak cleanup --purge` to give "+
			"that up, or leave `server` out to keep it", path)
	}
	if !sharedfiles.Placed(j.dirs) {
		return false, nil
	}
	// From an attempt that was broken off, or a database outside has the state.
	raw, err := os.ReadFile(filepath.Join(j.dirs.ServerPKI(), string(pki.ServerCA)+".crt"))
	if err != nil {
		return false, fmt.Errorf("read the server CA: %w", err)
	}
	if j.token.CA == "" {
		if j.token.CA, _, err = joinapi.CAHash(raw); err != nil { // a password says nothing; these keys do
			return false, err
		}
	}
	if !token.HoldsCA(raw, j.token.CA) {
		return false, fmt.Errorf("the keys in %s are another cluster's than the token's: run `umiak cleanup --purge` if they are not "+
			"needed any more", j.dirs.ServerPKI())
	}
	return j.request.Datastore == joinwire.External, nil
}

// ask makes one attempt.
func (j *joining) ask(ctx context.Context) (*joinwire.ServerResponse, error) {
	if err := token.CheckClock(time.Now()); err != nil {
		return nil, err
	}
	ca, err := j.token.FetchCA(ctx, j.addr, time.Now)
	if err != nil {
		return nil, err
	}
	var resp joinwire.ServerResponse
	c := joinclient.Client{CAs: token.EncodeCA(ca), Token: j.token, Now: time.Now, Version: version.Version}
	if j.request.Datastore == joinwire.Etcd {
		c.Etcd = etcd.Version()
	}
	if err := j.reach(ctx, c); err != nil {
		return nil, err
	}
	server, err := c.Post(ctx, j.addr, joinwire.ServerPath, j.request, &resp)
	if err == nil {
		if skew := version.ServerFits(version.Version, server); skew != nil {
			err = joinwire.Refuse(joinwire.BadVersion, "%v", skew)
		}
	}
	return &resp, err
}

// reach checks that this server and the members of an etcd cluster reach each other, before it becomes a member:
// otherwise it could not catch up, and would hold up the others.
func (j *joining) reach(ctx context.Context, c joinclient.Client) error {
	if j.request.Datastore != joinwire.Etcd {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", j.listen)
	if err != nil {
		return fmt.Errorf("listen on %s, where the other servers have to reach this one: %w", j.listen, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close() // that it came is all
		}
	}()
	defer func() {
		_ = l.Close()
		<-done
	}()
	var resp joinwire.ServerResponse
	if _, err := c.Post(ctx, j.addr, joinwire.ServerCheckPath, j.request, &resp); err != nil {
		return err
	}
	for _, m := range resp.Members {
		if m.Peer == j.request.Peer || m.Learner {
			continue
		}
		err := probe(ctx, m.Peer)
		switch {
		case err == nil:
		case m.Needed:
			return fmt.Errorf("this server cannot reach server %s at %s (%w): servers need 2380/tcp of each other, in both "+
				"directions; open it in the firewall of %s", m.Name, m.Peer, err, m.Name)
		case !slices.Contains(j.unreached, m.Peer):
			j.unreached = append(j.unreached, m.Peer)
			j.log.Warn("this server cannot reach one of the others; that is a fault unless that one is off",
				"server", m.Name, "address", m.Peer, "error", err)
		}
	}
	return nil
}

// logWaiting logs why joining waits, when that has changed.
func (j *joining) logWaiting(err error) {
	if j.waiting.Is(err) {
		j.log.Warn("waiting to join, trying again", "error", err)
	}
}

// recall gets the cluster's keys from a database that several servers share, by the server token. Where the database
// is empty, this is a new cluster.
func recall(ctx context.Context, cfg JoinConfig) error {
	dc := cfg.Datastore
	dc.Registerer = nil
	return storage.Once(ctx, dc, func(st datastore.Store) error {
		c, err := datastore.Client(ctx, st)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // only a connection
		if err := refuseForeign(ctx, c, true); err != nil {
			return err
		}
		r, revision, err := readRecord(ctx, c)
		switch {
		case err != nil || revision == 0:
			return err
		case r.Sealed == nil:
			return errors.New("the cluster's keys are not in the database: start this server when the first one runs; if it does, run " +
				"`umiak token rotate server` there and set the new token here")
		}
		if cfg.Token.Secret == "" {
			return errors.New("the database holds a cluster: set its server token as token (data-dir/server/token on another server)")
		}
		if diff := joinwire.Differences(r.Settings, cfg.Settings); len(diff) > 0 {
			return errors.New(joinapi.Describe(diff))
		}
		files, err := r.Files(cfg.Token.Secret)
		if err != nil {
			return fmt.Errorf("token: %w", err)
		}
		if err := errors.Join(sharedfiles.MarkJoined(cfg.Dirs), sharedfiles.Place(cfg.Dirs, files)); err != nil {
			return err
		}
		cfg.Log.Info("this server is one more of the cluster in the database")
		return nil
	})
}
