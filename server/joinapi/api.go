package joinapi

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/client-go/metadata"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server/pki"
)

// NodeLifetime is the lifetime of the certificates of nodes, which are renewed after two thirds of it.
const NodeLifetime = 30 * 24 * time.Hour

// Signer is the part of pki.PKI that the API uses.
type Signer interface {
	Sign(l pki.Leaf, key crypto.PublicKey) ([]byte, error)
	CAPEM(ca pki.CA) []byte
}

var _ Signer = (*pki.PKI)(nil)

// Config describes the API of one server.
type Config struct {
	Signer  Signer
	Cluster joinwire.Cluster // what nodes are told
	Servers Servers          // takes servers in
	// Self is the node on this machine, empty where there is none.
	Self string
	// Own is this server's address as HOST:PORT, for agents, until the cluster has published it; empty while it has none.
	Own func() string
	// Name is this server's, DNSNames are those in the API server's certificate. No node may have one of them.
	Name     string
	DNSNames []string
	// SANs are the addresses that settings add to the API server's certificate.
	SANs []netip.Addr
	// Access reaches the tokens, and WaitReady returns when the API server answers.
	Access    Access
	WaitReady func(context.Context) error
	// IPs returns the API server's addresses, which no node may have; they may change while it runs.
	IPs func() []string
	// Version is this server's release, Etcd the version of its etcd.
	Version, Etcd string
	// TokensChanged is called when one of the two tokens of the first start may be another one; it must not block.
	TokensChanged func()
	Log           *slog.Logger
	Now           func() time.Time // time.Now
}

// names returns the names that no node may have.
func (c Config) names() []string {
	if c.Name == "" {
		return c.DNSNames
	}
	return append(slices.Clone(c.DNSNames), c.Name)
}

// Servers admits servers to the cluster.
type Servers interface {
	// Datastore is the kind that the cluster's servers share, empty where one server has it for itself.
	Datastore() joinwire.Datastore
	// Settings are those that all servers must have alike.
	Settings() []joinwire.Setting
	// Check returns the members of the cluster if this server reaches the one that asks. Its refusals are *joinapi.Error.
	Check(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error)
	// Holds reports whether a server with a name is a member of the cluster, as far as the datastore knows its members.
	Holds(name string) bool
	// Admit takes a server in whose request has been checked. Its refusals are *joinapi.Error.
	Admit(ctx context.Context, r *joinwire.ServerRequest) (*joinwire.ServerResponse, error)
	// Withdraw undoes Admit for a server that has not started.
	Withdraw(ctx context.Context, r *joinwire.ServerRequest) error
	// Dismiss takes a server out whose node was deleted. It does nothing for a node that is no server.
	Dismiss(ctx context.Context, name string) error
}

// API answers requests to join. It refuses until Run has been called and follows the tokens.
type API struct {
	cfg   Config
	ready atomic.Pointer[serving]
	work  chan struct{} // holds one for each request that has been let in

	members   *Members
	passwords *failures
	refusals  *logging.Digest
	claims    claims
}

// serving is the state of one Run.
type serving struct {
	tokens Tokens
	known  *known
	since  time.Time // the server's start, or later
}

var _ http.Handler = (*API)(nil)

const (
	// maxConcurrent bounds the requests with a good token that are served at a time: each costs signatures and writes.
	maxConcurrent = 8
	// enterTimeout bounds the reading of a request's body and the wait for its turn.
	enterTimeout = 10 * time.Second
	// maxChain bounds the certificates of a client that are read.
	maxChain = 8
	// maxMessage bounds the length of a refusal in bytes.
	maxMessage = 500
)

// New returns an API that is put before the API server.
func New(cfg Config) *API {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Version == "" {
		cfg.Version = version.Version
	}
	if cfg.TokensChanged == nil {
		cfg.TokensChanged = func() {}
	}
	if cfg.IPs == nil {
		cfg.IPs = func() []string { return nil }
	}
	cfg.Log = cfg.Log.With("component", "join")
	return &API{cfg: cfg, members: newMembers(cfg.Self, rangesOf(cfg.Cluster)...), work: make(chan struct{}, maxConcurrent),
		passwords: newFailures(cfg.Now), refusals: logging.NewDigest(cfg.Log, cfg.Now, "refused to let a node in")}
}

// Run serves until ctx ends, once the API server answers.
func (a *API) Run(ctx context.Context, ready func()) error {
	if err := a.cfg.WaitReady(ctx); err != nil {
		return err
	}
	tokens, err := a.cfg.Access.Tokens()
	if err != nil {
		return err
	}
	a.members.ask(tokens.Client)
	if err := soon(ctx, func() error {
		return tokens.publishNames(ctx, a.cfg.Name, a.cfg.DNSNames,
			a.cfg.SANs)
	}); err != nil {
		a.cfg.Log.Warn("other servers do not know the names and addresses of this one (tls-san), and may give them to a node", "error", err)
	}
	rc, err := a.cfg.Access.config()
	if err != nil {
		return err
	}
	meta, err := metadata.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return a.Serve(ctx, meta, tokens, ready)
}

// Serve follows the tokens, and the nodes that meta reads, until ctx ends, and lets requests in meanwhile.
func (a *API) Serve(ctx context.Context, meta metadata.Interface, tokens Tokens, ready func()) error {
	a.members.ask(tokens.Client)
	k, stop, err := tokens.follow(ctx, a.cfg.TokensChanged, a.members)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer stop()
	now := &serving{tokens: tokens, known: k, since: a.cfg.Now()}
	a.ready.Store(now)
	defer a.ready.Store(nil)
	ready()
	a.followNodes(ctx, meta, now)
	<-ctx.Done()
	return nil
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var do func(context.Context, *serving, *http.Request, http.ResponseWriter) (any, error)
	switch r.URL.Path {
	case joinwire.NodePath:
		do = a.join
	case joinwire.RenewPath, joinwire.CheckPath:
		do = a.renew
	case joinwire.TaintsPath:
		do = a.taints
	case joinwire.ServerPath, joinwire.ServerCheckPath:
		do = a.joinServer
	default:
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST only", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	s := a.ready.Load()
	if s == nil {
		a.refuse(w, r, joinwire.Refuse(joinwire.Starting, "the server is starting, try again"))
		return
	}
	resp, err := do(r.Context(), s, r, w)
	if err != nil {
		a.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(resp) // who has gone away asks again
}

// tellVersion has the answer name this server's release: only who has authenticated learns it.
func (a *API) tellVersion(w http.ResponseWriter) {
	w.Header().Set(joinwire.VersionHeader, a.cfg.Version)
}

// tokenOf returns the token that a request shows, once it is known to be good.
func (a *API) tokenOf(s *serving, r *http.Request, w http.ResponseWriter) (Record, error) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		return Record{}, joinwire.Refuse(joinwire.BadToken, "a token is needed to join")
	}
	from := remote(r)
	guessable := s.known.guessable(id)
	if guessable && !a.passwords.try(from) {
		return Record{}, joinwire.Refuse(joinwire.Busy,
			"too many wrong passwords from your address; a token of `umiak token create` is not held up by this")
	}
	rec, why := s.known.token(id, secret, a.cfg.Now())
	if why != "" {
		return Record{}, joinwire.Refuse(joinwire.BadToken, "%s", why)
	}
	if guessable {
		a.passwords.right(from)
	}
	a.tellVersion(w)
	return rec, nil
}

// identity is the node whose agent has proved in the handshake that it holds the key of a certificate
// that this cluster has issued, be it ended: the node password is asked for besides.
func (a *API) identity(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", errors.New("the node's client certificate is needed")
	}
	c := r.TLS.PeerCertificates[0]
	name, ok := wellknown.AgentOf(c.Subject.CommonName, c.Subject.Organization)
	if !ok {
		return "", errors.New("the client certificate is not a node's")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AppendCertsFromPEM(a.cfg.Signer.CAPEM(pki.ClientCA))
	// the client CA may be an intermediate
	for _, c := range r.TLS.PeerCertificates[1:min(len(r.TLS.PeerCertificates), maxChain)] {
		between.AddCert(c)
	}
	at := a.cfg.Now()
	if at.After(c.NotAfter) {
		at = c.NotAfter
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "", errors.New("the client certificate was not issued by this cluster")
	}
	return name, nil
}

// member authenticates a node that has joined by its certificate, see identity, and enters. The caller checks
// the password, and calls release at the end.
func (a *API) member(ctx context.Context, r *http.Request, w http.ResponseWriter, req any) (name string, release func(),
	err error) {
	if name, err = a.identity(r); err != nil {
		return "", nil, joinwire.Refuse(joinwire.BadIdentity, "%v", err)
	}
	a.tellVersion(w)
	release, err = a.enter(ctx, r, w, req)
	return name, release, err
}

// enter reads the body of a request into req, and then waits for a turn, so that slow senders delay no others.
func (a *API) enter(ctx context.Context, r *http.Request, w http.ResponseWriter, req any) (release func(), err error) {
	if err := decode(r, w, req); err != nil {
		return nil, err
	}
	t := time.NewTimer(enterTimeout)
	defer t.Stop()
	select {
	case a.work <- struct{}{}:
		return func() { <-a.work }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.C:
		return nil, joinwire.Refuse(joinwire.Busy, "too many machines join at once, try again")
	}
}

func decode(r *http.Request, w http.ResponseWriter, req any) error {
	// where it cannot be set, the server's own limits hold
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(enterTimeout))
	if err := joinwire.Decode(r.Body, req); err != nil {
		return joinwire.Refuse(joinwire.BadRequest, "%v", err)
	}
	return nil
}

// refuse answers with an error. What went wrong inside is for the log, not for strangers.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var e *joinwire.Error
	if !errors.As(err, &e) {
		a.cfg.Log.Error("cannot let a node in", "from", remote(r), "error", err)
		e = joinwire.Refuse(joinwire.ServerFailed, "the server could not do it, its log says why")
	}
	if len(e.Message) > maxMessage { // it may quote what was asked for
		e = joinwire.Refuse(e.Code, "%s…", strings.ToValidUTF8(e.Message[:maxMessage], ""))
	}
	status := http.StatusForbidden
	switch e.Code {
	case joinwire.BadRequest:
		status = http.StatusBadRequest
	case joinwire.BadToken, joinwire.BadIdentity:
		status = http.StatusUnauthorized
	case joinwire.Starting, joinwire.Busy:
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	case joinwire.ServerFailed:
		status = http.StatusInternalServerError
	}
	if e.Code != joinwire.Starting {
		a.refusals.Add(remote(r).String(), e.Message)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // who has gone away does not care
}

func remote(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
