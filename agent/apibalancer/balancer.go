package apibalancer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/packetmark"
)

// Config describes a Balancer.
type Config struct {
	Listen string // HOST:PORT, such as 127.0.0.1:6444
	File   string // where the list is stored; "" if Given is the only server
	// Given is the server that the user has set, as HOST:PORT; "" if there is none. It ranks after the servers on the
	// list.
	Given string
	Log   *slog.Logger
}

// Timing of failover, if there is more than one server.
const (
	checkInterval = 5 * time.Second
	dialTimeout   = 2 * time.Second
	// staggerDelay is how long dial waits for a server before it also tries the next one.
	staggerDelay = 250 * time.Millisecond
	// ackTimeout bounds how long data or keep-alive probes stay unacknowledged (TCP_USER_TIMEOUT).
	ackTimeout = 3 * time.Second
	// demotionTime is how long a server that has closed a connection ranks lower: it may be shutting down, and accept
	// connections that it will not serve.
	demotionTime = 3 * time.Second
)

// Balancer is the proxy. Its list of servers is usable before Run.
type Balancer struct {
	cfg Config

	mu      sync.Mutex
	listed  []string // the cluster's list
	servers map[string]*server
	changed chan struct{} // closed when the list changes
	wake    chan struct{} // triggers a check: a server has failed
}

// server is a server from the list, or the given one.
type server struct {
	addr     string
	down     error // why it does not answer; nil if it does
	since    time.Time
	closedAt time.Time // when the server last closed a connection
	conns    map[*link]struct{}
}

// link is one proxied connection.
type link struct{ client, server *net.TCPConn }

func (l *link) close() {
	_ = l.client.Close() // nothing to do about an error
	_ = l.server.Close()
}

// New reads the stored list. An unreadable list is logged and ignored.
func New(cfg Config) (*Balancer, error) {
	b := &Balancer{cfg: cfg, servers: map[string]*server{}, changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	b.cfg.Log = cfg.Log.With("component", "servers")
	raw, err := os.ReadFile(cfg.File) // "" does not exist
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the list of servers: %w", err)
	}
	if err == nil {
		list, err := parse(raw)
		if err != nil {
			// The list is a cache; Given still works.
			b.cfg.Log.Warn("the stored list of servers is unreadable and is ignored", "file", cfg.File, "error", err)
		}
		b.listed = list
	}
	b.adopt()
	return b, nil
}

// maxServers bounds the list.
const maxServers = 64

// parse reads the file: a JSON list of HOST:PORT.
func parse(raw []byte) ([]string, error) {
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	return list, check(list)
}

func check(list []string) error {
	if len(list) > maxServers {
		return fmt.Errorf("%d servers, at most %d are allowed", len(list), maxServers)
	}
	for _, s := range list {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
			return fmt.Errorf("%q is not HOST:PORT", s)
		}
	}
	return nil
}

// Servers returns the servers on the list, or the given one if the list is empty, and a channel that is closed when the
// list changes.
func (b *Balancer) Servers() (list []string, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.listed) > 0 {
		return slices.Clone(b.listed), b.changed
	}
	if b.cfg.Given != "" {
		return []string{b.cfg.Given}, b.changed
	}
	return nil, b.changed
}

// Set replaces the list and stores it on disk. It ignores an empty list.
func (b *Balancer) Set(list []string) error {
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	if err := check(list); err != nil {
		return fmt.Errorf("list of servers: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(list) == 0 || slices.Equal(list, b.listed) {
		return nil
	}
	b.cfg.Log.Info("servers of this cluster", "servers", list)
	b.listed = list
	b.adopt()
	close(b.changed)
	b.changed = make(chan struct{})
	b.wakeUp()
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(b.cfg.File); err == nil && bytes.Equal(old, raw) {
		return nil
	}
	return atomicfile.Write(b.cfg.File, raw, 0o600)
}

// adopt updates servers from the list. A server that is off the list stays while it has connections. b.mu must be held.
func (b *Balancer) adopt() {
	want := b.listed
	if b.cfg.Given != "" && !slices.Contains(want, b.cfg.Given) {
		want = append(slices.Clone(want), b.cfg.Given)
	}
	for addr, s := range b.servers {
		if !slices.Contains(want, addr) && len(s.conns) == 0 {
			delete(b.servers, addr)
		}
	}
	for _, addr := range want {
		if b.servers[addr] == nil {
			b.servers[addr] = &server{addr: addr, since: time.Now(), conns: map[*link]struct{}{}}
		}
	}
}

func (b *Balancer) wakeUp() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// order returns the servers in the order in which dial tries them. Servers that answer come first; among them, those
// that have not just closed a connection, then those on the list before the given one, then those with fewer
// connections.
func (b *Balancer) order() []*server {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*server
	for _, s := range b.servers {
		if s.addr == b.cfg.Given || slices.Contains(b.listed, s.addr) {
			out = append(out, s)
		}
	}
	rank := func(s *server) int {
		switch {
		case s.down != nil:
			return 3
		case time.Since(s.closedAt) < demotionTime:
			return 2
		case !slices.Contains(b.listed, s.addr):
			return 1
		}
		return 0
	}
	// Map iteration is random, so servers of equal rank are too.
	slices.SortStableFunc(out, func(x, y *server) int {
		if d := rank(x) - rank(y); d != 0 {
			return d
		}
		return len(x.conns) - len(y.conns)
	})
	return out
}

// Run accepts connections until ctx ends.
func (b *Balancer) Run(ctx context.Context, ready func()) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", b.cfg.Listen)
	if err != nil {
		return host.PortError(err, "tcp", b.cfg.Listen, "set lb-server-port")
	}
	defer l.Close() //nolint:errcheck // it may be closed already
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer b.closeAll()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	wg.Add(1)
	go func() {
		defer wg.Done()
		b.checkAll(ctx)
	}()
	ready()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			b.serve(ctx, c.(*net.TCPConn))
		}()
	}
}

func (b *Balancer) closeAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.servers {
		for l := range s.conns {
			l.close()
		}
	}
}

// serve proxies one connection.
func (b *Balancer) serve(ctx context.Context, client *net.TCPConn) {
	s, up, err := b.dial(ctx)
	if err != nil {
		_ = client.SetLinger(0) // reset instead of a clean end
		_ = client.Close()
		b.cfg.Log.Debug("no server accepts a connection", "error", err)
		return
	}
	l := &link{client: client, server: up}
	b.mu.Lock()
	s.conns[l] = struct{}{}
	b.mu.Unlock()
	defer func() {
		l.close()
		b.mu.Lock()
		delete(s.conns, l)
		b.adopt()
		b.mu.Unlock()
	}()
	if ctx.Err() != nil {
		return
	}
	var wg sync.WaitGroup
	var clientEnded atomic.Bool
	wg.Add(1)
	go func() {
		defer wg.Done()
		_, _ = up.ReadFrom(client)
		clientEnded.Store(true)
		_ = up.CloseWrite()
	}()
	_, err = client.ReadFrom(up)
	if !clientEnded.Load() {
		b.mu.Lock()
		s.closedAt = time.Now()
		b.mu.Unlock()
	}
	if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EHOSTUNREACH) {
		b.wakeUp() // the server vanished without closing: check its other connections
	}
	_ = client.CloseWrite()
	if err != nil {
		l.close()
	}
	wg.Wait()
}

var errNoServer = errors.New("no server is known")

// dial connects to the first server that answers. It also tries the next server if one does not answer within
// staggerDelay.
func (b *Balancer) dial(ctx context.Context) (*server, *net.TCPConn, error) {
	order := b.order()
	if len(order) == 0 {
		return nil, nil, errNoServer
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s    *server
		conn *net.TCPConn
		err  error
	}
	results := make(chan result, len(order))
	several := len(order) > 1
	start := func(s *server) {
		conn, err := dialOne(ctx, s.addr, several)
		if err != nil && ctx.Err() != nil {
			err = context.Canceled // another server was faster: this one is not down
		} else {
			b.setState(s, err)
		}
		results <- result{s, conn, err}
	}
	var errs []error
	next, open := 0, 0
	var timer <-chan time.Time
	for {
		if next < len(order) && (open == 0 || timer == nil) {
			go start(order[next])
			next, open = next+1, open+1
			timer = time.After(staggerDelay)
		}
		select {
		case <-timer:
			timer = nil
		case r := <-results:
			open--
			if r.err == nil {
				go func(left int) { // close connections that are established later
					for range left {
						if late := <-results; late.err == nil {
							_ = late.conn.Close()
						}
					}
				}(open)
				return r.s, r.conn, nil
			}
			errs = append(errs, fmt.Errorf("%s: %w", r.s.addr, r.err))
			if open == 0 && next == len(order) {
				return nil, nil, errors.Join(errs...)
			}
			timer = nil // try the next at once
		}
	}
}

// dialOne opens a connection with keep-alive. several means that there are other servers: then failures are detected
// sooner.
func dialOne(ctx context.Context, addr string, several bool) (*net.TCPConn, error) {
	limit := 10 * time.Second
	d := net.Dialer{Control: packetmark.Control, KeepAliveConfig: net.KeepAliveConfig{Enable: true,
		Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3}}
	if several {
		limit = dialTimeout
		d.KeepAliveConfig = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.TCPConn)
	if several {
		raw, err := conn.SyscallConn()
		if err == nil {
			_ = raw.Control(func(fd uintptr) { // without it, failures are detected later
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ackTimeout.Milliseconds()))
			})
		}
	}
	return conn, nil
}

// setState records whether a server answers, err being nil if it does. It closes the connections to a server that has
// failed.
func (b *Balancer) setState(s *server, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if (err == nil) == (s.down == nil) {
		s.down = err
		return
	}
	s.down, s.since = err, time.Now()
	if err == nil {
		b.cfg.Log.Info("server answers again", "server", s.addr)
		return
	}
	b.cfg.Log.Warn("server does not answer", "server", s.addr, "error", err)
	for l := range s.conns {
		l.close()
	}
}

// checkAll checks all servers at every interval, and at once after a failure. A single server that answers needs no
// check: there is no alternative.
func (b *Balancer) checkAll(ctx context.Context) {
	tick := time.NewTicker(checkInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-b.wake:
		}
		order := b.order()
		if len(order) < 2 && (len(order) == 0 || order[0].down == nil) {
			continue
		}
		var wg sync.WaitGroup
		for _, s := range order {
			wg.Add(1)
			go func() {
				defer wg.Done()
				conn, err := dialOne(ctx, s.addr, true)
				if err != nil && ctx.Err() == nil {
					conn, err = dialOne(ctx, s.addr, true) // one lost packet is no failure
				}
				if ctx.Err() != nil && err != nil {
					return
				}
				if err == nil {
					_ = conn.Close()
				}
				b.setState(s, err)
			}()
		}
		wg.Wait()
	}
}
