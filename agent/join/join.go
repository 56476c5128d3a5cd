package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// Config describes the cluster to join.
type Config struct {
	Dirs   layout.Dirs
	Server string      // HOST:PORT; see joinclient.Address
	Token  token.Token // may be zero on a node that has joined before
	// Local is the HOST:PORT at which the balancer listens.
	Local    string
	Balancer *apibalancer.Balancer
	Version  string // of this release; "" means version.Version
	Log      *slog.Logger
	Now      func() time.Time // nil means time.Now
}

// Joiner is the node's membership in the cluster.
type Joiner struct {
	cfg Config

	renewing sync.Mutex // serializes renewals

	mu     sync.Mutex
	node   joinwire.Node
	joined *joined // nil until the node has joined
	ends   time.Time
	state  string // for status
	detail string
	logged string // the last logged reason for waiting
	skew   string // why this release does not fit the servers'; "" if it does
	fresh  bool   // joined in this process
	// changed is closed when the facts about the cluster change.
	changed chan struct{}
}

// New creates the folders for keys and returns a Joiner.
func New(cfg Config) (*Joiner, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Version == "" {
		cfg.Version = version.Version
	}
	cfg.Log = cfg.Log.With("component", "join")
	for _, d := range []string{cfg.Dirs.Agent(), cfg.Dirs.AgentPKI()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("create folder: %w", err)
		}
	}
	return &Joiner{cfg: cfg, state: "starting", changed: make(chan struct{})}, nil
}

// Join joins the cluster. If the machine is a node already, it returns the stored facts without asking a server.
func (j *Joiner) Join(ctx context.Context, node joinwire.Node) (*joinwire.Cluster, error) {
	j.mu.Lock()
	j.node = node
	j.mu.Unlock()
	old, err := j.load(node.Name)
	if err != nil {
		// Join again with the existing keys.
		j.cfg.Log.Info("this machine has to join", "reason", err)
	} else {
		if ca := j.cfg.Token.CA; ca != "" && !j.trusts(ca) {
			j.cfg.Log.Warn(
				"the token is for another cluster than the one this machine has joined, and is ignored; to change the cluster, run `umiak cleanup --purge` first")
		}
		if err := j.writeKubeconfigs(); err != nil {
			return nil, err
		}
		j.adopt(old)
		c := old.Cluster
		return &c, nil
	}
	if j.cfg.Token.Secret == "" {
		return nil, lifecycle.Permanent(
			errors.New("a token is needed to join (token or token-file); `umiak token create` on a server prints one"))
	}
	if j.cfg.Token.CA == "" && j.knownCAs() == nil {
		j.cfg.Log.Warn(joinclient.Unpinned)
	}
	if err := joinclient.Retry(ctx, j.enroll, func(err error) { j.waiting("waiting to join", err) }); err != nil {
		if joinclient.IsFinal(err) {
			err = lifecycle.Permanent(err)
		}
		return nil, err
	}
	c := j.current().Cluster
	return &c, nil
}

// Servers returns all known servers, and a channel that is closed when the list changes: the node keeps a tunnel to
// each.
func (j *Joiner) Servers() (list []string, changed <-chan struct{}) { return j.cfg.Balancer.Servers() }

// Facts returns the last facts about the cluster, and a channel that is closed when they change; see agent.Facts.
func (j *Joiner) Facts() (c joinwire.Cluster, changed <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.joined != nil {
		c = j.joined.Cluster
	}
	return c, j.changed
}

// update stores facts that a server sent to a node that has joined before.
func (j *Joiner) update(c joinwire.Cluster) error {
	s := j.current()
	c.APIServer = s.Cluster.APIServer
	if reflect.DeepEqual(c, s.Cluster) {
		return nil
	}
	s.Cluster = c
	return j.store(&s)
}

// SetTaints asks the cluster to set the taints of this node's settings; see agent.Taints.
func (j *Joiner) SetTaints(ctx context.Context, _ string, taints []corev1.Taint) error {
	password, err := token.SecretFile(j.cfg.Dirs.NodePassword())
	if err != nil {
		return err
	}
	c, err := j.nodeClient()
	if err != nil {
		return err
	}
	_, err = c.Post(ctx, j.cfg.Local, joinwire.TaintsPath, joinwire.TaintsRequest{Password: password, Taints: taints},
		&joinwire.TaintsResponse{})
	return err
}

// nodeClient returns a client of the join API that authenticates with the node's certificate.
func (j *Joiner) nodeClient() (*joinclient.Client, error) {
	cert, err := j.keyPair(nodecerts.AgentClient)
	if err != nil {
		return nil, err
	}
	cas, err := os.ReadFile(j.file(serverCA))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA: %w", err)
	}
	return &joinclient.Client{CAs: cas, Certificate: cert, Now: j.cfg.Now, Version: j.cfg.Version}, nil
}

// enroll joins with the token, through the first server that accepts it.
func (j *Joiner) enroll(ctx context.Context) error {
	if err := token.CheckClock(j.cfg.Now()); err != nil {
		return err
	}
	req, err := j.request()
	if err != nil {
		return err
	}
	addrs := []string{j.cfg.Server}
	list, _ := j.cfg.Balancer.Servers()
	for _, a := range list {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	var errs []error
	for _, addr := range addrs {
		ca, err := j.fetchCA(ctx, addr)
		if err == nil {
			var resp joinwire.NodeResponse
			c := joinclient.Client{CAs: token.EncodeCA(ca), Token: j.cfg.Token, Now: j.cfg.Now, Version: j.cfg.Version}
			var server string
			if server, err = c.Post(ctx, addr, joinwire.NodePath, req, &resp); err == nil {
				// A server of an older release does not check this.
				if err := version.NodeFits(j.cfg.Version, server); err != nil {
					return joinwire.Refuse(joinwire.BadVersion, "%v", err)
				}
				if err := j.accept(&resp, token.HashCA(ca)); err != nil {
					return err
				}
				j.mu.Lock()
				j.fresh = true
				j.mu.Unlock()
				j.cfg.Log.Info("joined", "server", addr, "node", req.Name, "until", j.end())
				return nil
			}
		}
		if joinclient.IsFinal(err) || errors.Is(err, token.ErrClock) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// fetchCA verifies that a server may get the token, and returns its CA. A token without a CA hash is sent to an
// unverified server only on the first join: later the node knows the CA.
func (j *Joiner) fetchCA(ctx context.Context, addr string) (*x509.Certificate, error) {
	if cas := j.knownCAs(); j.cfg.Token.CA == "" && cas != nil {
		return token.FetchKnownCA(ctx, addr, cas, j.cfg.Now)
	}
	return j.cfg.Token.FetchCA(ctx, addr, j.cfg.Now)
}

// knownCAs returns the CAs of the cluster that this machine has joined, nil if it has joined none.
func (j *Joiner) knownCAs() []byte {
	raw, err := os.ReadFile(j.file(serverCA))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return append([]byte{}, raw...) // not nil if unreadable: do not trust an unverified server then
}

// Run renews the certificates before they expire and follows the list of servers, until ctx ends.
func (j *Joiner) Run(ctx context.Context, ready func()) error {
	client, err := j.client()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Add(1)
	go func() {
		defer wg.Done()
		j.cfg.Balancer.Follow(ctx, client)
	}()
	ready()
	alarm, err := wallclock.NewAlarm()
	if err != nil {
		return err
	}
	defer alarm.Close()
	confirmed, pauses := false, retry.Backoff{First: renewPause, Limit: maxRenewPause}
	for {
		var next time.Duration
		switch err := j.maintain(ctx, &confirmed); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			next = j.due().Sub(j.cfg.Now())
			pauses.Reset()
		default:
			next = pauses.Next()
		}
		if err := alarm.Set(min(next, 24*time.Hour)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-alarm.Rung():
			if !ok {
				return alarm.Err()
			}
		}
	}
}

// maintain renews the certificates if they are due, and checks once after a start whether the cluster still has the
// node; a node that has just joined needs no check.
func (j *Joiner) maintain(ctx context.Context, confirmed *bool) error {
	path, what := joinwire.RenewPath, "cannot renew its certificates"
	if j.due().After(j.cfg.Now()) {
		if *confirmed || j.justJoined() {
			return nil
		}
		path, what = joinwire.CheckPath, "joined before"
	}
	err := j.renew(ctx, path)
	if err == nil {
		*confirmed = true
		j.settled()
		return nil
	}
	if joinclient.IsFinal(err) {
		what = "refused"
	}
	j.waiting(what, err)
	return err
}

// Pauses between failed renewals; see retry.Backoff.
const (
	renewPause    = 5 * time.Second
	maxRenewPause = 10 * time.Minute
)

// renew requests new certificates with the current ones or, if those are refused, with the token. With
// joinwire.CheckPath, it changes nothing while the cluster has the node.
func (j *Joiner) renew(ctx context.Context, path string) error {
	j.renewing.Lock()
	defer j.renewing.Unlock()
	req, err := j.request()
	if err != nil {
		return err
	}
	c, err := j.nodeClient()
	if err != nil {
		return err
	}
	var resp joinwire.NodeResponse
	server, err := c.Post(ctx, j.cfg.Local, path, req, &resp)
	j.checkVersion(server)
	if err == nil && path == joinwire.CheckPath {
		return errors.Join(j.cfg.Balancer.Set(resp.Servers), j.update(resp.Cluster))
	}
	if err == nil {
		if err = j.accept(&resp, ""); err != nil {
			return err
		}
		j.cfg.Log.Info("renewed the node's certificates", "until", j.end())
		return nil
	}
	if (joinclient.IsCode(err, joinwire.UnknownNode) || joinclient.IsCode(err, joinwire.BadIdentity)) &&
		j.cfg.Token.Secret != "" {
		if again := j.enroll(ctx); again != nil {
			return fmt.Errorf("%w; joining again: %w", err, again)
		}
		return nil
	}
	return err
}

// Authorities renews the node's certificates unless it has the CAs with this hash; a server asks for it when CAs are
// rotated. It returns the hash of the node's CAs, and since when the node has them and its certificates.
func (j *Joiner) Authorities(ctx context.Context, hash string) (has string, since time.Time, err error) {
	if has, since, err = j.authorities(); err != nil || has == hash {
		return has, since, err
	}
	if err := j.renew(ctx, joinwire.RenewPath); err != nil {
		return has, since, err
	}
	return j.authorities()
}

// authorities returns the hash of the node's CAs, and the time of the newest of its certificate files.
func (j *Joiner) authorities() (hash string, since time.Time, err error) {
	server, err := os.ReadFile(j.file(serverCA))
	if err != nil {
		return "", since, fmt.Errorf("read the cluster's CA: %w", err)
	}
	client, err := os.ReadFile(j.file(clientCA))
	if err != nil {
		return "", since, fmt.Errorf("read the cluster's CA: %w", err)
	}
	for _, f := range []string{serverCA, clientCA, nodecerts.AgentClient + ".crt", nodecerts.KubeletClient + ".crt"} {
		info, err := os.Stat(j.file(f))
		if err != nil {
			return "", since, fmt.Errorf("read the node's certificates: %w", err)
		}
		if info.ModTime().After(since) {
			since = info.ModTime()
		}
	}
	return tunnelwire.HashAuthorities(server, client), since, nil
}

// checkVersion records for status whether the node's release fits that of the server that answered. A node that does
// not fit continues.
func (j *Joiner) checkVersion(server string) {
	skew := ""
	if err := version.NodeFits(j.cfg.Version, server); err != nil {
		skew = err.Error()
	}
	j.mu.Lock()
	isNew := skew != "" && j.skew != skew
	if server != "" {
		j.skew = skew
	}
	j.mu.Unlock()
	if isNew {
		j.cfg.Log.Warn("this node's release does not fit the server's", "reason", skew)
	}
}

func (j *Joiner) justJoined() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fresh
}

// settled records that the node waits for nothing.
func (j *Joiner) settled() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state, j.detail, j.logged = "joined", "", ""
}

// waiting records what the node waits for, and logs it if it is new.
func (j *Joiner) waiting(state string, err error) {
	j.mu.Lock()
	isNew := j.logged != err.Error()
	j.state, j.detail, j.logged = state, err.Error(), err.Error()
	j.mu.Unlock()
	if isNew {
		j.cfg.Log.Warn(state+", trying again", "error", err)
	}
}
