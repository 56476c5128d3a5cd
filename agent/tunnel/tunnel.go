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

// ServerName is the name that every server's certificate carries, whatever its addresses.
const ServerName = "kubernetes"

// Pauses before connecting again; see retry.Backoff. A tunnel that was open for longer than held begins with firstWait.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 5 * time.Second
	held        = 10 * time.Second
)

// connectTimeout is for one attempt, all handshakes included.
const connectTimeout = 5 * time.Second

// dialTimeout is how long a kubelet or a pod has to take a connection.
const dialTimeout = 10 * time.Second

// Config is what the tunnels are told.
type Config struct {
	// Servers are all servers as HOST:PORT, and a channel that is closed when the list changes.
	Servers func() (list []string, changed <-chan struct{})
	// ServerCA verifies servers; Cert and Key are the agent's. The files are read for each connection: the
	// certificate is renewed while the agent runs.
	ServerCA, Cert, Key string
	Allow               Allow
	// Authorities makes sure that this node has the authorities with a hash, and says which it has since when.
	Authorities func(ctx context.Context, hash string) (has string, since time.Time, err error)
	// Dial reaches servers, Connect what a server asks for; nil means directly.
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

// New makes tunnels that Run opens.
func New(cfg Config) *Tunnels {
	if cfg.Allow.Own == nil {
		cfg.Allow.Own = MachineAddresses
	}
	if cfg.Dial == nil {
		cfg.Dial = packetmark.Dialer().DialContext
	}
	if cfg.Connect == nil {
		cfg.Connect = (&net.Dialer{}).DialContext
	}
	return &Tunnels{cfg: cfg, log: cfg.Log.With("component", "tunnel"), links: map[string]*link{}}
}

// Run keeps a tunnel to each server of the list until ctx ends. It is ready at once: a node works without,
// and what needs a tunnel waits for it at the server.
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

// follow opens tunnels to servers that are new in the list and ends those to servers that are gone.
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
		wg.Go(func() { l.keep(ctx) })
	}
}

// Status says for `umiak status` to which servers there is a tunnel.
func (t *Tunnels) Status(context.Context) status.Section {
	t.mu.Lock()
	links := make([]*link, 0, len(t.links))
	for _, l := range t.links {
		links = append(links, l)
	}
	t.mu.Unlock()
	slices.SortFunc(links, func(a, b *link) int { return strings.Compare(a.server, b.server) })
	out := status.Section{Name: "Tunnels to servers"}
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
	since time.Time // of the state open
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

// keep has the tunnel open whenever that is possible.
func (l *link) keep(ctx context.Context) {
	defer l.stop()
	wait, news := retry.Backoff{First: firstWait, Limit: longestWait, Spread: true}, retry.News{}
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
		if opened && time.Since(began) > held {
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
		err = errors.New("the server does not answer any more")
	}
	return true, err
}

// connect dials the server, proves who this node is, and switches to the tunnel's protocol.
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
	c := tls.Client(tcp, &tls.Config{ServerName: ServerName, RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
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
		return nil, errors.Join(fmt.Errorf("ask for the tunnel: %w", context.Cause(ctx)), err)
	}
	if err != nil {
		return nil, err
	}
	return tunnelwire.AgentConn(c, ahead), nil
}

// upgrade asks for the tunnel and returns what the server sent behind its answer.
func upgrade(c net.Conn, server string) ([]byte, error) {
	req := &http.Request{
		Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: server, Path: tunnelwire.Path}, Host: server,
		Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {tunnelwire.Protocol}, "User-Agent": {"umiak-agent"}},
	}
	if err := req.Write(c); err != nil {
		return nil, fmt.Errorf("ask for the tunnel: %w", err)
	}
	// The limit is for an answer that does not end; what follows it is read from c.
	r := bufio.NewReader(io.LimitReader(c, 64<<10))
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("ask for the tunnel: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // there is none, or the connection is given up
	if resp.StatusCode != http.StatusSwitchingProtocols {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // what there is of it
		return nil, fmt.Errorf("the server refuses the tunnel: %s: %s", resp.Status, strings.TrimSpace(string(why)))
	}
	if resp.Header.Get("Upgrade") != tunnelwire.Protocol {
		return nil, errors.New("the server does not speak " + tunnelwire.Protocol)
	}
	ahead, err := r.Peek(r.Buffered())
	return slices.Clone(ahead), err
}

// single is a listener for the one connection that there is. The next Accept waits for its end.
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

// ServeHTTP connects the server to what it asks for.
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
		l.log.Warn("refused what a server asked for", "asked", r.Host, "reason", err)
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

// authorities has this node take the authorities over that the server knows, and says which it has.
func (l *link) authorities(w http.ResponseWriter, r *http.Request) {
	hash, since, err := l.t.cfg.Authorities(r.Context(), r.URL.Query().Get(tunnelwire.AuthoritiesHash))
	if err != nil {
		l.log.Warn("cannot take over the cluster's authorities yet", "error", err)
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(tunnelwire.Authorities{Hash: hash, AgeSeconds: int64(time.Since(since) / time.Second)}) // a server that has gone away asks again
}

// splice copies both ways until the far side has closed the connection, or the server has given it up.
func splice(w http.ResponseWriter, r *http.Request, c net.Conn) {
	defer c.Close() //nolint:errcheck // both ends notice
	stop := context.AfterFunc(r.Context(), func() { _ = c.Close() })
	defer stop()
	flush := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if flush.Flush() != nil {
		return
	}
	go func() {
		_, err := io.Copy(c, r.Body) // ends with the handler at the latest, which closes the body
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
			panic(http.ErrAbortHandler) // resets the stream, so that the server does not take it for the end
		}
	}
}
