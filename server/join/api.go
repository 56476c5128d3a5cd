package join

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/joinapi"
	"github.com/umiak-io/umiak/internal/names"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/pki"
)

// NodeLifetime is how long the certificates of nodes are good. They are renewed after two thirds of it.
const NodeLifetime = 30 * 24 * time.Hour

// Signer is what the API needs of server/pki.
type Signer interface {
	Sign(l pki.Leaf, key crypto.PublicKey) ([]byte, error)
	CAPEM(ca pki.CA) []byte
}

var _ Signer = (*pki.PKI)(nil)

// Config says what the API works with.
type Config struct {
	Signer  Signer
	Cluster joinapi.Cluster // what nodes are told
	Servers Servers         // takes servers in
	// Own is this server's address as HOST:PORT, for agents, until the cluster has published it; empty while it has none.
	Own func() string
	// Names and IPs are the API server's, which no node may have.
	Names []string
	IPs   []string
	// Version is this server's release, Etcd the version of its etcd.
	Version, Etcd string
	// TokensChanged is called when one of the two tokens of the first start may be another one; it must not block.
	TokensChanged func()
	Log           *slog.Logger
	Now           func() time.Time // time.Now
}

// Servers is how the cluster gets more of them.
type Servers interface {
	// Datastore is the kind that the cluster's servers share, empty where one server has it for itself.
	Datastore() joinapi.Datastore
	// Settings are those that all servers must have alike.
	Settings() []joinapi.Setting
	// Check returns the members of the cluster if this server reaches the one that asks. Its refusals are *joinapi.Error.
	Check(ctx context.Context, r *joinapi.ServerRequest) (*joinapi.ServerResponse, error)
	// Holds reports whether a server with a name is a member of the cluster, as far as the datastore knows its members.
	Holds(name string) bool
	// Admit takes a server in whose request has been checked. Its refusals are *joinapi.Error.
	Admit(ctx context.Context, r *joinapi.ServerRequest) (*joinapi.ServerResponse, error)
	// Withdraw undoes Admit for a server that has not started.
	Withdraw(ctx context.Context, r *joinapi.ServerRequest) error
	// Dismiss takes a server out whose node was deleted. It does nothing for a node that is no server.
	Dismiss(ctx context.Context, name string) error
}

// API answers requests to join. It refuses until Run has been called and follows the tokens.
type API struct {
	cfg   Config
	ready atomic.Pointer[serving]
	work  chan struct{} // holds one for each request that has been let in

	passwords *failures
	refusals  *digest
}

// serving is what there is while Run runs.
type serving struct {
	tokens Tokens
	known  *known
}

var _ http.Handler = (*API)(nil)

const (
	// atOnce is how many requests with a good token are worked on at a time: each costs signatures and writes.
	atOnce = 8
	// patience is how long a request may take to send its body, and to wait for its turn.
	patience = 10 * time.Second
	// maxMessage is how long a refusal may be.
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
	cfg.Log = cfg.Log.With("component", "join")
	return &API{cfg: cfg, work: make(chan struct{}, atOnce), passwords: newFailures(cfg.Now), refusals: &digest{log: cfg.Log, now: cfg.Now}}
}

// Run follows tokens and nodes until ctx ends, and lets requests in meanwhile.
func (a *API) Run(ctx context.Context, client kubernetes.Interface, meta metadata.Interface, tokens Tokens, ready func()) error {
	k, stop, err := tokens.follow(ctx, a.cfg.TokensChanged)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer stop()
	a.ready.Store(&serving{tokens: tokens, known: k})
	defer a.ready.Store(nil)
	ready()
	a.followNodes(ctx, meta, &serving{tokens: tokens, known: k})
	<-ctx.Done()
	return nil
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var do func(context.Context, *serving, *http.Request, http.ResponseWriter) (any, error)
	switch r.URL.Path {
	case joinapi.NodePath:
		do = a.join
	case joinapi.RenewPath, joinapi.CheckPath:
		do = a.renew
	case joinapi.TaintsPath:
		do = a.taints
	case joinapi.ServerPath, joinapi.ServerCheckPath:
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
	w.Header().Set(joinapi.VersionHeader, a.cfg.Version)
	s := a.ready.Load()
	if s == nil {
		a.refuse(w, r, joinapi.Refuse(joinapi.Starting, "the server is starting, try again"))
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

// join lets a node in that has a token.
func (a *API) join(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	rec, err := a.tokenOf(s, r) // either kind lets a node in
	if err != nil {
		return nil, err
	}
	if err := version.NodeFits(r.Header.Get(joinapi.VersionHeader), a.cfg.Version); err != nil {
		return nil, joinapi.Refuse(joinapi.BadVersion, "%v", err)
	}
	release, err := a.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	n, req, err := a.read(ctx, s, r, w)
	if err != nil {
		return nil, err
	}
	if err := a.yield(ctx, s, n.name, req.Password); err != nil {
		return nil, err
	}
	if err := a.admit(ctx, s, rec, n.name, req.Password, token.Agent); err != nil {
		return nil, err
	}
	resp, err := a.answer(ctx, s, n)
	if err == nil {
		a.cfg.Log.Info("a node has joined", "node", n.name, "token", rec.ID, "from", remote(r))
	}
	return resp, err
}

// tokenOf is the token that a request shows, once it is known to be good.
func (a *API) tokenOf(s *serving, r *http.Request) (Record, error) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		return Record{}, joinapi.Refuse(joinapi.BadToken, "a token is needed to join")
	}
	from := remote(r)
	if id == "" && a.passwords.blocked(from) {
		return Record{}, joinapi.Refuse(joinapi.Busy, "too many wrong passwords from your address; a token is not held up by this")
	}
	rec, why := s.known.token(id, secret, a.cfg.Now())
	if why != "" {
		if id == "" {
			a.passwords.add(from)
		}
		return Record{}, joinapi.Refuse(joinapi.BadToken, "%s", why)
	}
	return rec, nil
}

// yield frees a name that another machine has claimed and never used: the join was broken off, and neither a Node nor a
// member of the cluster has come of it.
func (a *API) yield(ctx context.Context, s *serving, name, password string) error {
	old := s.known.node(name)
	if old == nil || owns(old, password) {
		return nil
	}
	if since := old.CreationTimestamp; since.IsZero() || a.cfg.Now().Sub(since.Time) < unused || a.cfg.Servers.Holds(name) {
		return taken(name)
	}
	// Only what a server has claimed without becoming a member: an agent's claim has got certificates, which stay valid,
	// and a join that was broken off still has its password. Of a database's servers only their nodes are known.
	if string(old.Data[keyKind]) != string(token.Server) || a.cfg.Servers.Datastore() != joinapi.Etcd {
		return taken(name)
	}
	if _, err := s.tokens.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}); err == nil {
		return taken(name)
	} else if !apierrors.IsNotFound(err) {
		return fmt.Errorf("read node %s: %w", name, err)
	}
	err := s.tokens.secrets().Delete(ctx, old.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &old.UID}})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("free the name of node %s: %w", name, err)
	}
	a.cfg.Log.Info("a machine that claimed a name never came, the name is free", "node", name)
	return nil
}

// unused is how old a claim must be before another machine may have the name, if the first one has not come.
const unused = 5 * time.Minute

// admit gives a node its name, for one of the token's uses, if it has limited ones. A machine that did not
// get the answer may ask again with the token that let it in.
func (a *API) admit(ctx context.Context, s *serving, rec Record, name, password string, kind token.Kind) error {
	old := s.known.node(name)
	if old != nil && !owns(old, password) { // yield may have freed it, of which the watch has not heard
		var err error
		if old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{}); apierrors.IsNotFound(err) {
			old = nil
		} else if err != nil {
			return fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if old == nil {
		err := s.tokens.use(ctx, rec.ID)
		if err == nil {
			err = s.tokens.claim(ctx, name, password, rec.ID, kind)
		}
		switch {
		case errors.Is(err, errNameTaken):
			return taken(name)
		case errors.Is(err, ErrUnknown): // revoked in this moment
			return usedUp(rec.ID)
		case !errors.Is(err, errUsedUp):
			return err
		}
		// The watch may be a moment behind.
		old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return usedUp(rec.ID)
		}
		if err != nil {
			return fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if !owns(old, password) {
		return taken(name)
	}
	if rec.UsesLeft != nil && string(old.Data[keyToken]) != rec.ID {
		// The node is known, and joins again with another token than the first time.
		if err := s.tokens.use(ctx, rec.ID); errors.Is(err, errUsedUp) || errors.Is(err, ErrUnknown) {
			return usedUp(rec.ID)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func usedUp(id string) error {
	return joinapi.Refuse(joinapi.BadToken, "token %s is used up; make a new one with `umiak token create` on a server", id)
}

func taken(name string) error {
	return joinapi.Refuse(joinapi.NameTaken, "another machine has joined as node %s: set node-name to another name, or, if this machine replaces it, first run `umiak kubectl delete node %s` on a server, or `umiak server forget %s` if it was a server without a node", name, name, name)
}

// renew gives a node new certificates, or only says that it could have them. The node shows the certificate
// it has, which may have ended, and its password.
func (a *API) renew(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (any, error) {
	name, err := a.identity(r)
	if err != nil {
		return nil, joinapi.Refuse(joinapi.BadIdentity, "%v", err)
	}
	release, err := a.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	n, req, err := a.read(ctx, s, r, w)
	if err != nil {
		return nil, err
	}
	if n.name != name {
		return nil, joinapi.Refuse(joinapi.BadIdentity, "node %s asks for the certificates of node %s", name, n.name)
	}
	old := s.known.node(name)
	if old == nil {
		// The watch may be a moment behind.
		old, err = s.tokens.secrets().Get(ctx, name+nodeSuffix, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, joinapi.Refuse(joinapi.UnknownNode, "node %s was deleted from the cluster; to have it back, restart it with a token", name)
		}
		if err != nil {
			return nil, fmt.Errorf("read the password of node %s: %w", name, err)
		}
	}
	if !owns(old, req.Password) {
		return nil, taken(name)
	}
	if r.URL.Path == joinapi.CheckPath {
		servers, err := a.servers(ctx, s)
		return &joinapi.NodeResponse{Cluster: a.cfg.Cluster, Servers: servers}, err
	}
	resp, err := a.answer(ctx, s, n)
	if err == nil {
		a.cfg.Log.Info("a node has renewed its certificates", "node", name)
	}
	return resp, err
}

// identity is the node whose agent has proved in the handshake that it holds the key of a certificate
// that this cluster has issued, be it ended: the node password is asked for besides.
func (a *API) identity(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", errors.New("the node's client certificate is needed")
	}
	c := r.TLS.PeerCertificates[0]
	name, ok := names.AgentOf(c.Subject.CommonName, c.Subject.Organization)
	if !ok {
		return "", errors.New("the client certificate is not a node's")
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.cfg.Signer.CAPEM(pki.ClientCA))
	at := a.cfg.Now()
	if at.After(c.NotAfter) {
		at = c.NotAfter
	}
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return "", errors.New("the client certificate was not issued by this cluster")
	}
	return name, nil
}

// enter waits for a turn.
func (a *API) enter(ctx context.Context) (release func(), err error) {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case a.work <- struct{}{}:
		return func() { <-a.work }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-t.C:
		return nil, joinapi.Refuse(joinapi.Busy, "too many machines join at once, try again")
	}
}

// read takes the body of a request that has been let in.
func (a *API) read(ctx context.Context, s *serving, r *http.Request, w http.ResponseWriter) (*node, *joinapi.NodeRequest, error) {
	var req joinapi.NodeRequest
	if err := decode(r, w, &req); err != nil {
		return nil, nil, err
	}
	res, err := a.reserved(ctx, s)
	if err != nil {
		return nil, nil, err
	}
	n, err := check(&req, res)
	if err != nil {
		return nil, nil, joinapi.Refuse(joinapi.BadRequest, "%v", err)
	}
	return n, &req, nil
}

func decode(r *http.Request, w http.ResponseWriter, req any) error {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience)) // where it cannot be set, the server's own limits hold
	if err := joinapi.Decode(r.Body, req); err != nil {
		return joinapi.Refuse(joinapi.BadRequest, "%v", err)
	}
	return nil
}

// reserved is what belongs to the servers.
func (a *API) reserved(ctx context.Context, s *serving) (reserved, error) {
	out := reserved{names: a.cfg.Names}
	servers, err := a.servers(ctx, s)
	if err != nil {
		return out, err
	}
	ips := slices.Clone(a.cfg.IPs)
	for _, hp := range servers {
		if host, _, err := net.SplitHostPort(hp); err == nil {
			ips = append(ips, host)
		}
	}
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil {
			out.ips = append(out.ips, ip.Unmap())
		}
	}
	for _, s := range slices.Concat(a.cfg.Cluster.ClusterCIDR, a.cfg.Cluster.ServiceCIDR) {
		if p, err := netip.ParsePrefix(s); err == nil {
			out.ranges = append(out.ranges, p)
		}
	}
	return out, nil
}

// servers are the addresses that the API servers have published.
func (a *API) servers(ctx context.Context, s *serving) ([]string, error) {
	list, err := s.tokens.Client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).List(ctx,
		metav1.ListOptions{LabelSelector: apiservers.Selector, ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	out := apiservers.Of(list.Items)
	if own := a.cfg.Own(); own != "" && !slices.Contains(out, own) {
		out = append(out, own)
	}
	return out, nil
}

// answer signs.
func (a *API) answer(ctx context.Context, s *serving, n *node) (*joinapi.NodeResponse, error) {
	servers, err := a.servers(ctx, s)
	if err != nil {
		return nil, err
	}
	user := pki.Leaf{CA: pki.ClientCA, Lifetime: NodeLifetime, CommonName: names.NodeUserPrefix + n.name, Organization: []string{names.NodesGroup}}
	agent := user
	agent.CommonName, agent.Organization = names.AgentUserPrefix+n.name, []string{names.AgentsGroup}
	serving := user
	serving.CA, serving.Server, serving.DNSNames, serving.IPs = pki.ServerCA, true, []string{n.name}, slices.Concat(n.ips, n.external)
	out := &joinapi.NodeResponse{Cluster: a.cfg.Cluster, Servers: servers, LifetimeSeconds: int64(NodeLifetime / time.Second),
		ServerCA: string(a.cfg.Signer.CAPEM(pki.ServerCA)), ClientCA: string(a.cfg.Signer.CAPEM(pki.ClientCA))}
	for _, c := range []struct {
		leaf pki.Leaf
		csr  *x509.CertificateRequest
		to   *string
	}{{user, n.kubelet, &out.Kubelet}, {agent, n.agent, &out.Agent}, {serving, n.serving, &out.Serving}} {
		crt, err := a.cfg.Signer.Sign(c.leaf, c.csr.PublicKey)
		if err != nil {
			return nil, err
		}
		*c.to = string(crt)
	}
	return out, nil
}

// refuse answers with an error. What went wrong inside is for the log, not for strangers.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var e *joinapi.Error
	if !errors.As(err, &e) {
		a.cfg.Log.Error("cannot let a node in", "from", remote(r), "error", err)
		e = joinapi.Refuse(joinapi.ServerFailed, "the server could not do it, its log says why")
	}
	if len(e.Message) > maxMessage { // it may quote what was asked for
		e = joinapi.Refuse(e.Code, "%s…", strings.ToValidUTF8(e.Message[:maxMessage], ""))
	}
	status := http.StatusForbidden
	switch e.Code {
	case joinapi.BadRequest:
		status = http.StatusBadRequest
	case joinapi.BadToken, joinapi.BadIdentity:
		status = http.StatusUnauthorized
	case joinapi.Starting, joinapi.Busy:
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	case joinapi.ServerFailed:
		status = http.StatusInternalServerError
	}
	if e.Code != joinapi.Starting {
		a.refusals.add(remote(r), e)
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
