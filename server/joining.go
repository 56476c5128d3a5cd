package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// Join makes this machine another server of a cluster, if it is to be one and is not yet. With a database outside, the
// cluster's keys are there. Otherwise the server that cfg names takes it in: Join waits for that server, writes the
// cluster's keys, and returns what WithEtcdMembers wants. It may be broken off, and goes on at the next start. The data directory must be locked by the caller.
func Join(ctx context.Context, cfg Config, log *slog.Logger) ([]etcd.Member, error) {
	if cfg.Server == "" && cfg.DatastoreEndpoint != "" && !sharedfiles.Placed(cfg.Dirs()) {
		if err := recall(ctx, cfg, log); err != nil {
			return nil, fmt.Errorf("start with the database: %w", err)
		}
		return nil, nil
	}
	if cfg.ClusterReset { // this server is the cluster's first one from now on
		return nil, sharedfiles.UnmarkJoined(cfg.Dirs())
	}
	if cfg.Server == "" {
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
		return fail(fmt.Errorf("token: it is a password, which says nothing about the server at %s, so it is not sent: set the line that is in data-dir/server/token there, or what `umiak token create --kind server` prints", j.addr))
	}
	// Also a server without a node keeps its name by a password.
	if err := os.MkdirAll(j.dirs.Agent(), 0o700); err != nil {
		return fail(err)
	}
	if j.request.Password, err = token.SecretFile(j.dirs.NodePassword()); err != nil {
		return fail(err)
	}
	var resp *joinwire.ServerResponse
	err = joinclient.Insist(ctx, func(ctx context.Context) (err error) {
		resp, err = j.ask(ctx)
		return err
	}, j.say)
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(sharedfiles.MarkJoined(j.dirs), sharedfiles.Place(j.dirs, resp.Files)); err != nil {
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
	request joinwire.ServerRequest
	listen  string // where members are listened for
	said    string

	unreached []string // members that were named in the log
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
	j.listen = net.JoinHostPort(bindAddress(cfg), strconv.Itoa(EtcdPort))
	j.request = joinwire.ServerRequest{Name: name, Datastore: joinwire.Etcd, Peer: peer, Settings: cfg.shared()}
	if cfg.DatastoreEndpoint != "" {
		j.request.Datastore, j.request.Peer = joinwire.External, ""
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
		if !datastore.Joining(j.dirs.DB()) {
			return true, nil
		}
		j.log.Info("this server was taken in and has never become a full member; it joins again")
		if err := datastore.GiveUpJoining(j.dirs.DB()); err != nil {
			return false, err
		}
	case datastore.BackendSQLite:
		return false, fmt.Errorf("this machine has a cluster of its own, whose state is in %s: run `umiak cleanup --purge` to give that up, or leave `server` out to keep it", path)
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
		return false, fmt.Errorf("the keys in %s are another cluster's than the token's: run `umiak cleanup --purge` if they are not needed any more", j.dirs.ServerPKI())
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

// reach tries whether this server and the members of an etcd cluster reach each other, before it is made one of them: it
// could not catch up otherwise, and would be in the way of others.
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
			return fmt.Errorf("this server cannot reach server %s at %s (%w): servers need 2380/tcp of each other, in both directions; open it in the firewall of %s", m.Name, m.Peer, err, m.Name)
		case !slices.Contains(j.unreached, m.Peer):
			j.unreached = append(j.unreached, m.Peer)
			j.log.Warn("this server cannot reach one of the others; that is a fault unless that one is off", "server", m.Name, "address", m.Peer, "error", err)
		}
	}
	return nil
}

// say logs why it waits, when it is news.
func (j *joining) say(err error) {
	if j.said != err.Error() {
		j.said = err.Error()
		j.log.Warn("waiting to join, trying again", "error", err)
	}
}
