package datastore

import (
	"context"
	"errors"
	"fmt"
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

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/internal/grpcserver"
	"github.com/umiak-io/umiak/datastore/internal/hub"
	"github.com/umiak-io/umiak/datastore/internal/watch"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/datastore/sqlite"
	"github.com/umiak-io/umiak/datastore/volatile"
	"github.com/umiak-io/umiak/internal/socket"
)

// Config describes the datastore of a server. Endpoint selects an external database, ClusterInit or the state on disk
// etcd; otherwise Open uses SQLite.
type Config struct {
	Dir            string // folder of the durable store's files
	Socket         string // unix socket of the durable store
	VolatileSocket string // unix socket of the one in memory
	// Endpoint is the URL of an external database: http:// or https:// for etcd, postgres://, mysql:// or nats://;
	// empty for a datastore on this machine. It may contain a password and is never logged.
	Endpoint string
	TLS      external.TLS // client files for Endpoint; zero for none
	// ClusterInit starts etcd in this process instead of SQLite and copies the keys of SQLite into it. Once etcd has
	// state on disk, it is used whatever ClusterInit is.
	ClusterInit bool
	Etcd        etcd.Config // Open sets Dir, Socket, Log, Registerer and Failing
	Log         *slog.Logger
	Registerer  prometheus.Registerer // nil: no metrics
	// Failing, if not nil, is called with true when the datastore stops taking writes, and with false when it takes them
	// again; it must not block.
	Failing func(bool)
}

// Store is an open datastore.
type Store interface {
	// Run serves until ctx ends, then closes the store. It calls ready when the endpoints answer. Run must be called
	// exactly once: it also releases what Open has taken.
	Run(ctx context.Context, ready func()) error
	// Endpoint returns the value of kube-apiserver's --etcd-servers.
	Endpoint() string
	// VolatileEndpoint returns the endpoint for Leases and Events, for --etcd-servers-overrides. It is empty where they
	// are stored with the other keys.
	VolatileEndpoint() string
	// TLS returns the files that a client of Endpoint needs; zero for a unix socket.
	TLS() external.TLS
	// Status returns the datastore section of `umiak status`.
	Status(ctx context.Context) (Status, error)
	// Source provides the content of snapshots. It can be read while Run runs.
	snapshot.Source
}

// Status is the state of a datastore. Of SQLite, Etcd and External, the one of the backend is set.
type Status struct {
	Backend  string           `json:"backend"`
	SQLite   *sqlite.Status   `json:"sqlite,omitempty"`
	Etcd     *etcd.Status     `json:"etcd,omitempty"`
	External *external.Status `json:"external,omitempty"`
	Volatile *VolatileStatus  `json:"volatile,omitempty"` // nil without a store in memory
}

// VolatileStatus is the state of the store in memory.
type VolatileStatus struct {
	Revision        int64 `json:"revision"`
	CompactRevision int64 `json:"compactRevision"`
	Keys            int64 `json:"keys"`
	Bytes           int64 `json:"bytes"`
}

// ErrFull is wrapped by errors of a datastore whose disk is full.
var ErrFull = sqlite.ErrFull

// progressInterval is the interval of unrequested progress notifications to watches that want them. kube-apiserver
// requests them when it needs them sooner.
const progressInterval = time.Minute

// compactInterval is the least age of history that is compacted: a client that was disconnected for less resumes its
// watch.
const compactInterval = 5 * time.Minute

// emulatedVersion is the version of etcd that the endpoints report; kube-apiserver derives their features from it.
const emulatedVersion = "3.6.11"

// backend is a store that newServer can serve: kine's interface for reads and writes, and a hub for watches.
type backend interface {
	server.Backend
	Hub() *hub.Hub
}

type store struct {
	cfg      Config
	durable  *sqlite.Store
	volatile *volatile.Store
}

// Open opens the datastore. With SQLite, it locks and checks the file and recovers a damaged one; with etcd, it starts
// the member; an external database that is not there yet is waited for until ctx ends.
func Open(ctx context.Context, cfg Config) (Store, error) {
	switch {
	case cfg.Endpoint != "":
		return openExternal(ctx, cfg)
	case Clustered(cfg):
		return openEtcd(ctx, cfg)
	}
	durable, err := sqlite.Open(ctx, sqlite.Options{Dir: cfg.Dir, Log: cfg.Log, Registerer: cfg.Registerer,
		Failing: cfg.Failing})
	if err != nil {
		return nil, err
	}
	return &store{cfg: cfg, durable: durable, volatile: volatile.New(durable.Epoch()<<snapshot.EpochBits, cfg.Log)}, nil
}

func (s *store) Endpoint() string         { return "unix://" + s.cfg.Socket }
func (s *store) VolatileEndpoint() string { return "unix://" + s.cfg.VolatileSocket }
func (s *store) TLS() external.TLS        { return external.TLS{} }

// Failing returns the reason why writes fail, nil if they do not.
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
			_ = l.Close() // a gRPC server that ran has closed it already
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
	for _, f := range []func(context.Context){s.durable.Run, s.volatile.Run, s.compact("sqlite", s.durable),
		s.compact("memory", s.volatile)} {
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
	ready() // the sockets listen, so a client that connects now gets an answer
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

// listen creates a unix socket for root alone, in place of an old one.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return socket.Listen(ctx, path)
}

// newServer returns a gRPC server with etcd's API on a store.
func newServer(b backend) *grpc.Server {
	g := grpcserver.New()
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
