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

// Port is the TCP port on which nodes give images to each other, the same on all nodes.
const Port = 5001

const (
	// idleTimeout is how long a connection stays open for the next request.
	idleTimeout = 30 * time.Second
	// maxConnections bounds the open connections from other machines.
	maxConnections = 512
)

// Config describes image sharing on one node. All fields but Off and Own must be set.
type Config struct {
	// Off keeps all images to this node: Run is not to be called, and images come from Registry alone.
	Off      bool
	Node     string   // this node's name
	Registry Registry // the hosts of the node's registry settings
	Socket   string   // containerd's socket
	PKI      string   // folder of the node's certificates; see agent.Joiner
	Own      Own      // images imported on this node; nil means none
	Log      *slog.Logger
}

// Own finds the images that were imported on this node, as opposed to pulled.
type Own interface {
	// Imported returns the target of an imported image's name; ok is false if there is none.
	Imported(ctx context.Context, name string) (_ ocispec.Descriptor, ok bool)
}

// Share is both ends of image sharing. It serves while Run runs; pulls may use it before, and find no neighbours.
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

// counters count for status.
type counters struct {
	given, bytes, refused atomic.Int64 // to others
	blobs, taken          atomic.Int64 // from others
}

func (c *counters) gave(bytes int64) {
	c.given.Add(1)
	c.bytes.Add(bytes)
}

// New returns a Share that serves nothing until Run is called.
func New(cfg Config) *Share {
	s := &Share{
		cfg: cfg, log: cfg.Log.With("component", "sharing"), id: identity(cfg.PKI), port: Port,
		nodes: newNeighbours(cfg.Node), probes: probes{all: map[string]probe{}}, state: "starting",
	}
	s.http = s.transport()
	return s
}

// Keep copies the needed fields of a node. Keep, Set and Remove implement agent/dataplane/network.Observer.
func (s *Share) Keep(from, to *v1.Node) { s.nodes.Keep(from, to) }

// Set adds or updates a node that Keep has reduced.
func (s *Share) Set(n *v1.Node) { s.nodes.Set(n) }

// Remove removes a node.
func (s *Share) Remove(name string) { s.nodes.Remove(name) }

// Run serves other nodes at the node's addresses until ctx ends. If a port is not available, Run returns an error after
// it has called ready: the node still gets images from others.
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
		lc := net.ListenConfig{Control: freeBind} // the address may be assigned later
		addr := net.JoinHostPort(a.String(), strconv.Itoa(s.port))
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close() // the next attempt listens on all again
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

// freeBind lets a socket bind to an address that the machine does not have yet (IP_FREEBIND).
func freeBind(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }), err)
}

// serve serves on the listeners until ctx ends.
func (s *Share) serve(ctx context.Context, st Store, listeners []net.Listener) error {
	isNode := func(node string) bool { _, ok := s.nodes.get(node); return ok }
	srv := &http.Server{
		Handler: requireNode(isNode, newHandler(st, s.nodes.selfIsServer, &s.count)),
		// Not ReadTimeout, which would end long transfers.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		l = tls.NewListener(netutil.LimitListener(newFairListener(l), maxConnections), s.id.server(isNode))
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

// requireNode refuses requests of a node that was deleted after it had connected, and closes the connection.
func requireNode(isNode func(node string) bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
			return
		}
		if node, err := nodeOf(*r.TLS); err != nil || !isNode(node) {
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

var _ status.Reporter = (*Share)(nil)

// Section reports what was given to and taken from other nodes.
func (s *Share) Section(context.Context) status.Section {
	if s.cfg.Off {
		return status.Section{Name: "Image sharing",
			Rows: []status.Row{{Name: "neighbours", State: "off", Detail: "image-sharing: false"}}}
	}
	s.mu.Lock()
	row := status.Row{Name: "neighbours", State: s.state, Detail: s.detail}
	s.mu.Unlock()
	if row.Detail == "" {
		c := &s.count
		row.Detail = fmt.Sprintf("%d nodes; gave %d blobs (%d MB), took %d (%d MB)", s.nodes.others(), c.given.Load(),
			c.bytes.Load()>>20, c.blobs.Load(), c.taken.Load()>>20)
		if n := c.refused.Load(); n > 0 {
			row.Detail += fmt.Sprintf("; was busy %d times", n)
		}
	}
	return status.Section{Name: "Image sharing", Rows: []status.Row{row}}
}
