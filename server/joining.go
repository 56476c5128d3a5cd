package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinapi"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/join"
	"github.com/umiak-io/umiak/server/keys"
	"github.com/umiak-io/umiak/server/pki"
)

// Join makes this machine another server of a cluster, if it is to be one and is not yet. With a database outside, the
// cluster's keys are there. Otherwise the server that cfg names takes it in: Join waits for that server, writes the
// cluster's keys, and returns what WithEtcdMembers wants. It may be broken off, and goes on at the next start. The data directory must be locked by the caller.
func Join(ctx context.Context, cfg Config, log *slog.Logger) ([]etcd.Member, error) {
	if cfg.Server == "" && cfg.DatastoreEndpoint != "" && !keys.Placed(cfg.Dirs()) {
		if err := recall(ctx, cfg, log); err != nil {
			return nil, fmt.Errorf("start with the database: %w", err)
		}
		return nil, nil
	}
	if cfg.Server == "" || cfg.ClusterReset {
		return nil, nil
	}
	fail := func(err error) ([]etcd.Member, error) {
		return nil, fmt.Errorf("join the cluster of %s: %w", cfg.Server, err)
	}
	j, err := newJoining(cfg, log.With("component", "join"))
	if err != nil {
		return fail(err)
	}
	if joined, err := j.before(); err != nil || joined {
		if err != nil {
			return fail(err)
		}
		return nil, nil
	}
	if j.token.Secret == "" {
		return fail(errors.New("a token is needed (token or token-file); `umiak token create --kind server` on a server prints one"))
	}
	if j.token.CA == "" {
		j.log.Warn(joinclient.Unpinned)
	}
	// Also a server without a node keeps its name by a password.
	if err := os.MkdirAll(j.dirs.Agent(), 0o700); err != nil {
		return fail(err)
	}
	if j.request.Password, err = token.SecretFile(j.dirs.NodePassword()); err != nil {
		return fail(err)
	}
	var resp *joinapi.ServerResponse
	err = joinclient.Insist(ctx, func(ctx context.Context) (err error) {
		resp, err = j.ask(ctx)
		return err
	}, j.say)
	if err != nil {
		return fail(err)
	}
	if err := keys.Place(j.dirs, resp.Files); err != nil {
		return fail(err)
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
	request joinapi.ServerRequest
	said    string
}

func newJoining(cfg Config, log *slog.Logger) (*joining, error) {
	j := &joining{dirs: cfg.Dirs(), log: log}
	var err error
	if j.addr, err = joinclient.Address(cfg.Server); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if j.token, err = cfg.joinToken(); err != nil {
		return nil, err
	}
	name, peer, err := EtcdSelf(cfg, log)
	if err != nil {
		return nil, err
	}
	j.request = joinapi.ServerRequest{Name: name, Datastore: joinapi.Etcd, Peer: peer, Settings: cfg.shared()}
	if cfg.DatastoreEndpoint != "" {
		j.request.Datastore, j.request.Peer = joinapi.External, ""
	}
	return j, nil
}

// joinToken is the token that is set, zero if none is.
func (c Config) joinToken() (token.Token, error) {
	text, err := token.FromSettings(c.Token, c.TokenFile)
	if err != nil {
		return token.Token{}, fmt.Errorf("token-file: %w", err)
	}
	if text == "" {
		return token.Token{}, nil
	}
	t, err := token.Parse(text)
	if err != nil {
		return token.Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// before says whether this machine is a server of a cluster already. One of another cluster's, or of its own, is
// not overwritten.
func (j *joining) before() (bool, error) {
	switch backend, path := datastore.Present(j.dirs.DB()); backend {
	case datastore.BackendEtcd:
		return true, nil
	case datastore.BackendSQLite:
		return false, fmt.Errorf("this machine has a cluster of its own, whose state is in %s: run `umiak cleanup --purge` to give that up, or leave `server` out to keep it", path)
	}
	if !keys.Placed(j.dirs) {
		return false, nil
	}
	// From an attempt that was broken off, or a database outside has the state.
	raw, err := os.ReadFile(filepath.Join(j.dirs.ServerPKI(), string(pki.ServerCA)+".crt"))
	if err != nil {
		return false, fmt.Errorf("read the server CA: %w", err)
	}
	if j.token.CA == "" {
		if j.token.CA, _, err = join.CAHash(raw); err != nil { // a password says nothing; these keys do
			return false, err
		}
	}
	if !token.HoldsCA(raw, j.token.CA) {
		return false, fmt.Errorf("the keys in %s are another cluster's than the token's: run `umiak cleanup --purge` if they are not needed any more", j.dirs.ServerPKI())
	}
	return j.request.Datastore == joinapi.External, nil
}

// ask makes one attempt.
func (j *joining) ask(ctx context.Context) (*joinapi.ServerResponse, error) {
	if err := token.CheckClock(time.Now()); err != nil {
		return nil, err
	}
	ca, err := token.FetchCA(ctx, j.addr, j.token.CA, time.Now)
	if err != nil {
		return nil, err
	}
	var resp joinapi.ServerResponse
	c := joinclient.Client{CAs: token.EncodeCA(ca), Token: j.token, Now: time.Now, Version: version.Version}
	if j.request.Datastore == joinapi.Etcd {
		c.Etcd = etcd.Version()
	}
	server, err := c.Post(ctx, j.addr, joinapi.ServerPath, j.request, &resp)
	if err == nil {
		if skew := version.ServerFits(version.Version, server); skew != nil {
			err = joinapi.Refuse(joinapi.BadVersion, "%v", skew)
		}
	}
	return &resp, err
}

// say logs why it waits, when it is news.
func (j *joining) say(err error) {
	if j.said != err.Error() {
		j.said = err.Error()
		j.log.Warn("waiting to join, trying again", "error", err)
	}
}
