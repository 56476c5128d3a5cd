package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/umiak-io/umiak/internal/packetmark"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// ServerName is a name in every server's certificate, independent of its addresses.
const ServerName = "kubernetes"

// Pauses between attempts to connect; see retry.Backoff. After a tunnel that was open for longer than stableTime, the
// pauses start again with minPause.
const (
	minPause   = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	stableTime = 10 * time.Second
)

// connectTimeout bounds one attempt, including all handshakes.
const connectTimeout = 5 * time.Second

// dialTimeout bounds connecting to the kubelet or a pod.
const dialTimeout = 10 * time.Second

// Config describes the tunnels.
type Config struct {
	// Servers returns all servers as HOST:PORT, and a channel that is closed when the list changes.
	Servers func() (list []string, changed <-chan struct{})
	// Paths of the CA that verifies servers, and of the agent's certificate and key. They are read for each connection,
	// because the certificate is renewed while the agent runs.
	ServerCA, Cert, Key string
	Allow               Allow
	// Authorities makes the node adopt the CAs with this hash, and returns the hash of the CAs that it has, and since
	// when. nil means that the node's CAs do not change.
	Authorities func(ctx context.Context, hash string) (has string, since time.Time, err error)
	// Dial connects to servers, Connect to the targets of servers' requests; nil means a direct connection.
	Dial, Connect func(ctx context.Context, network, addr string) (net.Conn, error)
	Log           *slog.Logger
}

// Tunnels are this node's connections to all servers.
type Tunnels struct {
	cfg Config
	log *slog.Logger

	mu    sync.Mutex
	links map[string]*link
}

// New returns tunnels that Run opens.
func New(cfg Config) *Tunnels {
	if cfg.Allow.Addresses == nil {
		cfg.Allow.Addresses = machineAddresses
	}
	if cfg.Dial == nil {
		cfg.Dial = packetmark.Dialer().DialContext
	}
	if cfg.Connect == nil {
		cfg.Connect = (&net.Dialer{}).DialContext
	}
	return &Tunnels{cfg: cfg, log: cfg.Log.With("component", "tunnel"), links: map[string]*link{}}
}

// Run maintains a tunnel to each server on the list until ctx ends. It calls ready at once: a node works without
// tunnels, and servers wait for them.
func (t *Tunnels) Run(ctx context.Context, ready func()) error {
	ready()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		list, changed := t.cfg.Servers()
		t.follow(ctx, list, &wg)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// follow opens tunnels to new servers on the list and closes those to removed ones.
func (t *Tunnels) follow(ctx context.Context, list []string, wg *sync.WaitGroup) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for addr, l := range t.links {
		if !slices.Contains(list, addr) {
			l.stop()
			delete(t.links, addr)
		}
	}
	for _, addr := range list {
		if t.links[addr] != nil {
			continue
		}
		ctx, stop := context.WithCancel(ctx)
		l := &link{t: t, server: addr, stop: stop, log: t.log.With("server", addr), state: "connecting"}
		t.links[addr] = l
		wg.Go(func() { l.run(ctx) })
	}
}

// SectionName is the title of the tunnels in `umiak status`.
const SectionName = "Tunnels to servers"

var _ status.Reporter = (*Tunnels)(nil)

// Section reports the state of the tunnel to each server.
func (t *Tunnels) Section(context.Context) status.Section {
	t.mu.Lock()
	links := make([]*link, 0, len(t.links))
	for _, l := range t.links {
		links = append(links, l)
	}
	t.mu.Unlock()
	slices.SortFunc(links, func(a, b *link) int { return strings.Compare(a.server, b.server) })
	out := status.Section{Name: SectionName}
	for _, l := range links {
		out.Rows = append(out.Rows, l.row())
	}
	return out
}

// link is the tunnel to one server.
type link struct {
	t      *Tunnels
	server string
	stop   context.CancelFunc
	log    *slog.Logger

	streams atomic.Int64
	refused atomic.Int64

	mu    sync.Mutex
	state string
	since time.Time // when state was set
	last  error
}

func (l *link) set(state string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state, l.since, l.last = state, time.Now(), err
}

func (l *link) row() status.Row {
	l.mu.Lock()
	defer l.mu.Unlock()
	row := status.Row{Name: l.server, State: l.state}
	switch {
	case l.state == "open":
		row.Detail = fmt.Sprintf("for %s, %d connections", time.Since(l.since).Round(time.Second), l.streams.Load())
		if n := l.refused.Load(); n > 0 {
			row.Detail += fmt.Sprintf(", %d refused", n)
		}
	case l.last != nil:
		row.Detail = l.last.Error()
	}
	return row
}

// run connects and serves, again and again, until ctx ends.
func (l *link) run(ctx context.Context) {
	defer l.stop()
	wait, news := retry.Backoff{First: minPause, Limit: maxPause, Spread: true}, retry.News{}
	for ctx.Err() == nil {
		began := time.Now()
		opened, err := l.once(ctx)
		if ctx.Err() != nil {
			return
		}
		l.set("connecting", err)
		if news.Is(err) || opened {
			l.log.Warn("tunnel is closed, connecting again", "error", err)
		}
		if opened && time.Since(began) > stableTime {
			wait.Reset()
		}
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

// once opens the tunnel and serves it until it ends. The error is never nil.
func (l *link) once(ctx context.Context) (opened bool, err error) {
	c, err := l.connect(ctx)
	if err != nil {
		return false, err
	}
	l.set("open", nil)
	l.log.Info("tunnel is open")
	srv := &http.Server{
		Protocols: tunnelwire.Protocols(), HTTP2: tunnelwire.AgentEnd(), Handler: l, ReadHeaderTimeout: connectTimeout,
		ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	err = srv.Serve(&single{conn: c})
	if cause := c.Cause(); cause != nil {
		err = cause
	} else if errors.Is(err, net.ErrClosed) {
		err = errors.New("the server stopped answering")
	}
	return true, err
}

// connect dials the server, authenticates the node, and switches to the tunnel's protocol.
func (l *link) connect(ctx context.Context) (_ *tunnelwire.Conn, err error) {
	cfg := l.t.cfg
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	pem, err := os.ReadFile(cfg.ServerCA)
	if err != nil {
		return nil, fmt.Errorf("read server CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read server CA: no certificate in %s", cfg.ServerCA)
	}
	cert, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("read the agent's certificate: %w", err)
	}
	tcp, err := cfg.Dial(ctx, "tcp", l.server)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c := tls.Client(tcp, &tls.Config{ServerName: ServerName, RootCAs: roots, Certificates: []tls.Certificate{cert},
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = tcp.Close() })
	ahead, err := upgrade(c, l.server)
	if !stop() {
		return nil, errors.Join(fmt.Errorf("request the tunnel: %w", context.Cause(ctx)), err)
	}
	if err != nil {
		return nil, err
	}
	return tunnelwire.AgentConn(c, ahead), nil
}

// upgrade requests the tunnel and returns the bytes that the server sent after its answer.
func upgrade(c net.Conn, server string) ([]byte, error) {
	req := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: server, Path: tunnelwire.Path}, Host: server,
		Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {tunnelwire.Protocol}, "User-Agent": {"umiak-agent"}},
	}
	if err := req.Write(c); err != nil {
		return nil, fmt.Errorf("request the tunnel: %w", err)
	}
	// The limit bounds the answer; later data is read from c.
	r := bufio.NewReader(io.LimitReader(c, 64<<10))
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("request the tunnel: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is empty, or the connection is closed
	if resp.StatusCode != http.StatusSwitchingProtocols {
		reason, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // best effort
		return nil, fmt.Errorf("the server refuses the tunnel: %s: %s", resp.Status, strings.TrimSpace(string(reason)))
	}
	if resp.Header.Get("Upgrade") != tunnelwire.Protocol {
		return nil, errors.New("the server does not speak " + tunnelwire.Protocol)
	}
	ahead, err := r.Peek(r.Buffered())
	return slices.Clone(ahead), err
}

// single is a listener that accepts one connection. The next Accept returns when that connection has ended.
type single struct {
	conn *tunnelwire.Conn
	done atomic.Bool
}

func (s *single) Accept() (net.Conn, error) {
	if s.done.CompareAndSwap(false, true) {
		return s.conn, nil
	}
	<-s.conn.Ended()
	return nil, net.ErrClosed
}

func (s *single) Close() error   { return s.conn.Close() }
func (s *single) Addr() net.Addr { return s.conn.LocalAddr() }

// ServeHTTP connects the server to the target that it requests.
func (l *link) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && r.URL.Path == tunnelwire.AuthoritiesPath && l.t.cfg.Authorities != nil {
		l.authorities(w, r)
		return
	}
	if r.Method != http.MethodConnect {
		http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
		return
	}
	target, err := l.t.cfg.Allow.Target(r.Host)
	if err != nil {
		l.refused.Add(1)
		l.log.Warn("refused a server's request", "target", r.Host, "reason", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), dialTimeout)
	defer cancel()
	c, err := l.t.cfg.Connect(ctx, "tcp", target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	l.streams.Add(1)
	defer l.streams.Add(-1)
	splice(w, r, c)
}

// authorities makes this node adopt the CAs that the server has, and answers which it has.
func (l *link) authorities(w http.ResponseWriter, r *http.Request) {
	hash, since, err := l.t.cfg.Authorities(r.Context(), r.URL.Query().Get(tunnelwire.AuthoritiesHash))
	if err != nil {
		l.log.Warn("cannot adopt the cluster's CAs yet", "error", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(tunnelwire.Authorities{Hash: hash,
		AgeSeconds: int64(time.Since(since) / time.Second)}) // on an error the server asks again
}

// splice copies data in both directions until the target closes the connection or the server cancels the request.
func splice(w http.ResponseWriter, r *http.Request, c net.Conn) {
	defer c.Close() //nolint:errcheck // both ends see the close
	stop := context.AfterFunc(r.Context(), func() { _ = c.Close() })
	defer stop()
	flush := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if flush.Flush() != nil {
		return
	}
	go func() {
		_, err := io.Copy(c, r.Body) // ends at the latest when the handler returns
		if half, ok := c.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			if flush.Flush() != nil {
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			panic(http.ErrAbortHandler) // resets the stream: this is not a clean end
		}
	}
}
