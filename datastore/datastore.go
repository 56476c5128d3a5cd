package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/internal/hub"
	"github.com/umiak-io/umiak/datastore/internal/watch"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/datastore/volatile"
)

// Config says where the state is and where it is served.
type Config struct {
	Dir            string // folder of the durable store's files
	Socket         string // unix socket of the durable store
	VolatileSocket string // unix socket of the one in memory
	// Endpoint is a database of somebody else: etcd at http(s)://, postgres://, mysql://, nats://. It may hold
	// a password and is never logged.
	Endpoint string
	TLS      external.TLS // for Endpoint
	// ClusterInit has etcd in this process instead of SQLite, and moves what SQLite has into it. Once there,
	// it stays, whatever is set.
	ClusterInit bool
	Etcd        etcd.Config // without Dir, Socket, Log and Registerer
	Log         *slog.Logger
	Registerer  prometheus.Registerer // nil: no metrics
	// Failing, if set, is called with true when the datastore has stopped taking writes, which is logged once, and with
	// false when it takes them again.
	Failing func(bool)
}

// Store is an open datastore.
type Store interface {
	// Run serves until ctx ends, then closes the files. ready is called when both sockets answer. It must
	// be called once, also to give back what Open took.
	Run(ctx context.Context, ready func()) error
	// Endpoint is for kube-apiserver's --etcd-servers.
	Endpoint() string
	// VolatileEndpoint is for --etcd-servers-overrides; empty where Leases and Events are kept with the rest.
	VolatileEndpoint() string
	// TLS are the files that a client of Endpoint needs, none for a socket.
	TLS() external.TLS
	// Status is what `umiak status` shows.
	Status(ctx context.Context) (Status, error)
	// Source is what a snapshot is made of. It can be read while Run runs.
	snapshot.Source
}

// Status tells about the stores.
type Status struct {
	Backend  string           `json:"backend"`
	SQLite   *sqlite.Status   `json:"sqlite,omitempty"`
	Etcd     *etcd.Status     `json:"etcd,omitempty"`
	External *external.Status `json:"external,omitempty"`
	Volatile *VolatileStatus  `json:"volatile,omitempty"` // nil where nothing is in memory alone
}

// VolatileStatus tells about the store in memory.
type VolatileStatus struct {
	Revision        int64 `json:"revision"`
	CompactRevision int64 `json:"compactRevision"`
	Keys            int64 `json:"keys"`
	Bytes           int64 `json:"bytes"`
}

// What can be wrong with a datastore; errors of Open wrap one of these where one fits.
var (
	ErrLocked   = sqlite.ErrLocked
	ErrNewer    = sqlite.ErrNewer
	ErrForeign  = sqlite.ErrForeign
	ErrReadOnly = sqlite.ErrReadOnly
	ErrFull     = sqlite.ErrFull
	ErrDamaged  = sqlite.ErrDamaged
)

// epochBits is the room for revisions of the store in memory within one start of the process: 2^36, so
// that 2^17 starts stay below 2^53, which JSON readers can still count.
const epochBits = 36

// progressInterval is how often a watch that asked for it hears the current revision unasked. The API
// server asks when it wants to know sooner.
const progressInterval = time.Minute

// compactInterval is how much history a store keeps at least: a client that was away for less goes on watching where
// it was.
const compactInterval = 5 * time.Minute

// emulatedVersion is the etcd whose features the API server may use.
const emulatedVersion = "3.6.11"

// backend is what a store offers: kine's interface for reads and writes, and a hub for watches.
type backend interface {
	server.Backend
	Hub() *hub.Hub
}

type store struct {
	cfg      Config
	durable  *sqlite.Store
	volatile *volatile.Store
}

// Open locks and checks the durable store, and recovers it if it is damaged.
func Open(ctx context.Context, cfg Config) (Store, error) {
	switch {
	case cfg.Endpoint != "":
		return openExternal(ctx, cfg)
	case Clustered(cfg):
		return openEtcd(ctx, cfg)
	}
	durable, err := sqlite.Open(ctx, sqlite.Options{Dir: cfg.Dir, Log: cfg.Log, Registerer: cfg.Registerer})
	if err != nil {
		return nil, err
	}
	return &store{cfg: cfg, durable: durable, volatile: volatile.New(durable.Epoch()<<epochBits, cfg.Log)}, nil
}

func (s *store) Endpoint() string         { return "unix://" + s.cfg.Socket }
func (s *store) VolatileEndpoint() string { return "unix://" + s.cfg.VolatileSocket }
func (s *store) TLS() external.TLS        { return external.TLS{} }

// Failing returns why writes fail, nil where they do not.
func (s Status) Failing() error {
	if s.SQLite != nil && s.SQLite.LastError != "" {
		return errors.New("writes fail: " + s.SQLite.LastError)
	}
	if s.Etcd != nil && len(s.Etcd.Alarms) > 0 {
		return fmt.Errorf("writes fail: alarms %v", s.Etcd.Alarms)
	}
	return nil
}

func (s *store) Status(ctx context.Context) (Status, error) {
	s.durable.Retry(ctx)
	st := s.durable.Status()
	out := Status{Backend: BackendSQLite, SQLite: &st, Volatile: &VolatileStatus{}}
	out.Volatile.Revision, out.Volatile.CompactRevision = s.volatile.Revisions()
	out.Volatile.Keys = s.volatile.Len()
	var err error
	out.Volatile.Bytes, err = s.volatile.DbSize(ctx)
	return out, err
}

func (s *store) Run(ctx context.Context, ready func()) (err error) {
	defer func() { err = errors.Join(err, s.durable.Close()) }()
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close() // again, where a server has done so
		}
	}()
	for _, path := range []string{s.cfg.Socket, s.cfg.VolatileSocket} {
		l, err := listen(ctx, path)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){s.durable.Run, s.volatile.Run, s.compact("sqlite", s.durable), s.compact("memory", s.volatile)} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			f(run)
		}()
	}
	failed := make(chan error, 2)
	servers := []*grpc.Server{newServer(s.durable), newServer(s.volatile)}
	for i, g := range servers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			failed <- g.Serve(listeners[i])
		}()
	}
	ready() // the sockets listen, so a client that connects now is answered
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serve datastore: %w", err)
	}
	cancel()
	for _, g := range servers {
		g.Stop()
	}
	wg.Wait()
	return err
}

func (s *store) compact(name string, r revisioned) func(context.Context) {
	return func(ctx context.Context) { newCompactor(name, r, s.cfg.Log).run(ctx, compactInterval) }
}

func (s *store) State(context.Context) (snapshot.State, error) {
	rev, _ := s.durable.Revisions()
	return snapshot.State{Backend: BackendSQLite, Revision: rev, Epoch: s.durable.Epoch()}, nil
}

func (s *store) Export(ctx context.Context, revision int64, visit func(*mvccpb.KeyValue) error) error {
	return s.durable.Export(ctx, revision, visit)
}

// listen makes a unix socket that only this user can open.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("listen on %s: the path of a unix socket may have 107 bytes, this has %d: choose a shorter --run-dir", path, len(path))
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// newServer serves a store as etcd, with etcd's own limits.
func newServer(b backend) *grpc.Server {
	g := grpc.NewServer(
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}),
		grpc.MaxRecvMsgSize(2<<20),
		grpc.MaxSendMsgSize(1<<31-1),
	)
	k := server.New(b, "unix", progressInterval, emulatedVersion)
	etcdserverpb.RegisterKVServer(g, k)
	etcdserverpb.RegisterLeaseServer(g, k)
	etcdserverpb.RegisterClusterServer(g, k)
	etcdserverpb.RegisterMaintenanceServer(g, k)
	etcdserverpb.RegisterWatchServer(g, watch.New(b.Hub(), progressInterval))
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, h)
	return g
}
