package imageshare

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	v1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/status"
)

// Port is where nodes give images to each other. It is the same on all, so that none need be told another's.
const Port = 5001

const (
	// idle is how long a connection is kept for the next request.
	idle = 30 * time.Second
	// connections bounds those that other machines have open here.
	connections = 512
)

// Config is what sharing is told.
type Config struct {
	Node     string   // this node's name
	Registry Registry // where images come from otherwise
	Socket   string   // containerd's
	PKI      string   // the folder of the node's certificates, see agent.Joiner
	Own      Own      // what was imported here; nil is nothing
	Log      *slog.Logger
}

// Own knows the images that somebody has imported on this node, as distinct from those that it has pulled.
type Own interface {
	// Imported returns what an imported image's name stands for; ok is false if there is none.
	Imported(ctx context.Context, name string) (_ ocispec.Descriptor, ok bool)
}

// Share is this node's part in it. It serves while Run runs; pulls may ask before, and find no neighbour.
type Share struct {
	cfg    Config
	log    *slog.Logger
	id     identity
	port   int
	nodes  *neighbours
	probes probes
	http   *http.Transport
	count  counters

	mu     sync.Mutex
	state  string
	detail string
}

// counters are for status.
type counters struct {
	given, bytes, refused atomic.Int64 // to others
	blobs, taken          atomic.Int64 // from others
}

func (c *counters) gave(bytes int64) {
	c.given.Add(1)
	c.bytes.Add(bytes)
}

// New makes what containerd is given; nothing is started.
func New(cfg Config) *Share {
	s := &Share{
		cfg: cfg, log: cfg.Log.With("component", "sharing"), id: identity(cfg.PKI), port: Port,
		nodes: newNeighbours(cfg.Node), probes: probes{all: map[string]probe{}}, state: "starting",
	}
	s.http = s.transport()
	return s
}

// Keep copies what is needed of a node. With Set and Remove it is how the network tells what nodes there are, see
// agent/dataplane/network.Observer.
func (s *Share) Keep(from, to *v1.Node) { s.nodes.Keep(from, to) }

// Set takes a node that has gone through Keep.
func (s *Share) Set(n *v1.Node) { s.nodes.Set(n) }

// Remove forgets a node.
func (s *Share) Remove(name string) { s.nodes.Remove(name) }

// Run serves other nodes at the node's addresses until ctx ends. A port that cannot be had is an error after it was
// ready: the node takes from others all the same.
func (s *Share) Run(ctx context.Context, addrs []netip.Addr, ready func()) (err error) {
	defer s.http.CloseIdleConnections()
	st, err := openStore(s.cfg.Socket)
	if err != nil {
		return err
	}
	defer st.Close() //nolint:errcheck // a connection, all is done
	ready()
	var listeners []net.Listener
	for _, a := range addrs {
		lc := net.ListenConfig{Control: freeBind} // the machine may have the address later
		addr := net.JoinHostPort(a.String(), strconv.Itoa(s.port))
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close() // it is tried again with all
			}
			err = host.PortError(err, "tcp", addr, "set image-sharing: false")
			s.set("takes only", err.Error())
			return fmt.Errorf("this node does not give images to others: %w", err)
		}
		listeners = append(listeners, l)
	}
	s.set("on", "")
	return s.serve(ctx, st, listeners)
}

// freeBind lets a socket listen at an address that the machine does not have yet.
func freeBind(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
}

// serve answers on the listeners until ctx ends.
func (s *Share) serve(ctx context.Context, st Store, listeners []net.Listener) error {
	known := func(node string) bool { _, ok := s.nodes.get(node); return ok }
	srv := &http.Server{
		Handler: stillKnown(known, newHandler(st, s.nodes.selfIsServer, &s.count)),
		// Not ReadTimeout: it would end a transfer that takes longer.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idle, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		l = tls.NewListener(netutil.LimitListener(newFair(l), connections), s.id.server(known))
		go func() { failed <- srv.Serve(l) }()
	}
	var errs []error
	for range listeners {
		if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, fmt.Errorf("give images to other nodes: %w", err))
			_ = srv.Close()
		}
	}
	if len(listeners) == 0 {
		<-ctx.Done()
	}
	return errors.Join(errs...)
}

// stillKnown refuses a node that was deleted after it had connected, and closes the connection.
func stillKnown(known func(node string) bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
		if node, err := nodeOf(*r.TLS); err != nil || !known(node) {
			w.Header().Set("Connection", "close")
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Share) set(state, detail string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.detail = state, detail
}

// Status says for `umiak status` what has been given and taken.
func (s *Share) Status(context.Context) status.Section {
	s.mu.Lock()
	row := status.Row{Name: "neighbours", State: s.state, Detail: s.detail}
	s.mu.Unlock()
	if row.Detail == "" {
		c := &s.count
		row.Detail = fmt.Sprintf("%d nodes; gave %d blobs (%d MB), took %d (%d MB)", s.nodes.others(), c.given.Load(), c.bytes.Load()>>20, c.blobs.Load(), c.taken.Load()>>20)
		if n := c.refused.Load(); n > 0 {
			row.Detail += fmt.Sprintf("; was busy %d times", n)
		}
	}
	return status.Section{Name: "Image sharing", Rows: []status.Row{row}}
}
