package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// ErrNoTunnel means that the node has no tunnel to this server.
var ErrNoTunnel = errors.New("the node has no tunnel to this server")

// maxSessions bounds a node's tunnels to this server. A node needs one. It has a second one if it reaches this server
// by two addresses, or has given up a connection that this end still considers alive: the newest is used, and an older
// one when that ends.
const maxSessions = 4

// Tunnels are the connections of all nodes to this server. It is the http.Handler for tunnelwire.Path.
type Tunnels struct {
	id  Identity
	log *slog.Logger

	refusals *logging.Digest

	mu      sync.Mutex
	nodes   map[string][]*session // the newest first
	changed chan struct{}         // closed when a node has connected, and replaced
	ended   bool
	// authorities is the hash of the CAs that nodes must have, "" while unknown.
	authorities string
}

var _ http.Handler = (*Tunnels)(nil)

// NewTunnels returns an empty set of tunnels.
func NewTunnels(id Identity, log *slog.Logger) *Tunnels {
	log = log.With("component", "tunnel")
	return &Tunnels{id: id, log: log, refusals: logging.NewDigest(log, time.Now, "refused a tunnel"),
		nodes: map[string][]*session{}, changed: make(chan struct{})}
}

// Run waits until ctx ends, then closes all tunnels and accepts no more.
func (t *Tunnels) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	t.mu.Lock()
	t.ended = true
	var all []*session
	for _, list := range t.nodes {
		all = append(all, list...)
	}
	t.mu.Unlock()
	for _, s := range all {
		s.close()
	}
	return nil
}

// ServeHTTP verifies the node and takes its connection over.
func (t *Tunnels) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	node, err := t.id.node(r)
	if err == nil {
		err = wellFormed(r)
	}
	if err != nil {
		code := http.StatusInternalServerError
		var no *refusal
		if errors.As(err, &no) {
			code = no.status
		}
		t.refusals.Add(r.RemoteAddr, err.Error())
		w.Header().Set("Connection", "close")
		http.Error(w, err.Error(), code)
		return
	}
	c, err := takeOver(w)
	if err != nil {
		t.log.Warn("cannot open a tunnel", "node", node, "from", r.RemoteAddr, "error", err)
		return
	}
	s, err := newSession(r.Context(), node, c)
	if err != nil {
		t.log.Warn("cannot open a tunnel", "node", node, "from", r.RemoteAddr, "error", err)
		return
	}
	s.key = r.TLS.PeerCertificates[0].RawSubjectPublicKeyInfo
	t.add(s)
	t.Left(node) // the node may have left meanwhile
}

// Left closes the tunnels of a node, or of all nodes if node is "", whose certificate Identity no longer admits.
func (t *Tunnels) Left(node string) {
	var list []*session
	t.mu.Lock()
	for name, sessions := range t.nodes {
		if node == "" || name == node {
			list = append(list, sessions...)
		}
	}
	t.mu.Unlock()
	for _, s := range list {
		ctx, cancel := context.WithTimeout(context.Background(), admitTimeout)
		err := t.id.admits(ctx, s.node, s.key)
		cancel()
		if err != nil {
			t.log.Info("closing a tunnel", "node", s.node, "reason", err)
			s.close()
		}
	}
}

// admitTimeout bounds the check whether a node belongs to the cluster.
const admitTimeout = 10 * time.Second

func wellFormed(r *http.Request) error {
	switch {
	case r.URL.Path != tunnelwire.Path:
		return &refusal{http.StatusNotFound, "no such path"}
	case r.Method != http.MethodGet || r.ProtoMajor != 1:
		return &refusal{http.StatusBadRequest, "a tunnel is requested with GET and HTTP/1.1"}
	case !strings.EqualFold(r.Header.Get("Connection"), "upgrade") || r.Header.Get("Upgrade") != tunnelwire.Protocol:
		return &refusal{http.StatusUpgradeRequired, "this server speaks " + tunnelwire.Protocol}
	}
	return nil
}

// takeOver hijacks the connection and answers that it switches protocols.
func takeOver(w http.ResponseWriter) (*tunnelwire.Conn, error) {
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be taken over", http.StatusInternalServerError)
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	ahead, err := buffered.Reader.Peek(buffered.Reader.Buffered())
	if err == nil {
		ahead = slices.Clone(ahead)
		err = raw.SetDeadline(time.Now().Add(5 * time.Second))
	}
	if err == nil {
		_, err = raw.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " +
			tunnelwire.Protocol + "\r\n\r\n"))
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return tunnelwire.ServerConn(raw, ahead), nil
}

// add makes s the node's newest session.
func (t *Tunnels) add(s *session) {
	t.mu.Lock()
	list := append([]*session{s}, t.nodes[s.node]...)
	for _, older := range list[1:] {
		older.replace()
	}
	var old *session
	if len(list) > maxSessions {
		old, list = list[maxSessions], list[:maxSessions]
	}
	t.nodes[s.node] = list
	others := len(list) - 1
	ended, authorities := t.ended, t.authorities
	close(t.changed)
	t.changed = make(chan struct{})
	t.mu.Unlock()
	if old != nil {
		old.close()
	}
	if ended {
		s.close()
	}
	t.log.Info("tunnel open", "node", s.node, "from", s.remote, "others", others)
	if authorities != "" {
		go t.pushAuthorities(s, authorities)
	}
	go func() {
		<-s.conn.Ended()
		t.remove(s)
		reason := "closed by this server"
		if err := s.conn.Cause(); err != nil {
			reason = err.Error()
		}
		t.log.Info("tunnel closed", "node", s.node, "from", s.remote, "after", time.Since(s.since).Round(time.Second),
			"reason", reason)
	}()
}

func (t *Tunnels) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.replace()
	list := slices.DeleteFunc(slices.Clone(t.nodes[s.node]), func(o *session) bool { return o == s })
	if len(list) == 0 {
		delete(t.nodes, s.node)
		return
	}
	t.nodes[s.node] = list
}

// choose returns the node's session to use, and a context that is canceled when there is a newer one.
func (t *Tunnels) choose(node string) (*session, context.Context) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.nodes[node] {
		if !s.usable() {
			continue
		}
		if s.newest.Err() != nil { // a newer session has ended
			s.newest, s.replace = context.WithCancel(context.Background())
		}
		return s, s.newest
	}
	return nil, nil
}

// Connected reports whether the node has a tunnel.
func (t *Tunnels) Connected(node string) bool {
	s, _ := t.choose(node)
	return s != nil
}

// Dial makes the node connect to addr and returns the connection. The error wraps ErrNoTunnel if the node has no
// tunnel.
func (t *Tunnels) Dial(ctx context.Context, node, addr string) (net.Conn, error) {
	for {
		s, newest := t.choose(node)
		if s == nil {
			return nil, fmt.Errorf("dial %s at node %s: %w", addr, node, ErrNoTunnel)
		}
		c, err := s.dial(ctx, newest, addr)
		if !errors.Is(err, errEnded) || ctx.Err() != nil {
			return c, err
		}
		// No data has been sent: try the next session.
	}
}

// Wait blocks until the node has a tunnel or ctx ends.
func (t *Tunnels) Wait(ctx context.Context, node string) error {
	for {
		t.mu.Lock()
		changed := t.changed
		t.mu.Unlock()
		if t.Connected(node) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// maxRows bounds how many nodes `umiak status` lists.
const maxRows = 20

var _ status.Reporter = (*Tunnels)(nil)

// Section reports which nodes have a tunnel to this server.
func (t *Tunnels) Section(context.Context) status.Section {
	t.mu.Lock()
	all := make([]*session, 0, len(t.nodes))
	for _, list := range t.nodes {
		all = append(all, list[0])
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.node, b.node) })
	out := status.Section{Name: "Tunnels of nodes"}
	for i, s := range all {
		if i == maxRows {
			out.Rows = append(out.Rows, status.Row{Name: fmt.Sprintf("%d more", len(all)-maxRows), State: "open"})
			break
		}
		out.Rows = append(out.Rows, status.Row{Name: s.node, State: "open", Detail: fmt.Sprintf(
			"from %s for %s, %d connections", s.remote, time.Since(s.since).Round(time.Second), s.http.InFlight())})
	}
	return out
}
