package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"google.golang.org/grpc"

	"github.com/umiak-io/umiak/internal/retry"
)

// Version returns the version of etcd that is linked into this program.
func Version() string { return version.Version }

// PeerName is the DNS name in the serving certificate of every member. Members verify it instead of the address, so
// that an address can change without a new certificate.
const PeerName = "etcd.umiak"

const (
	// commitInterval is the interval at which entries of the write-ahead log are also written to the database file: one
	// write in five seconds instead of etcd's ten a second, to spare flash. Reads do not wait for it.
	commitInterval = 5 * time.Second
	// snapshotEntries is the number of entries between two raft snapshots. Until then they are in memory.
	snapshotEntries = 5000
	// catchUpEntries is the number of entries that stay in memory after a snapshot, for slow members.
	catchUpEntries = 2500
	// heartbeat and election are in milliseconds. A lossy link with 20 ms of delay, or a slow SD card, must not look
	// like a lost leader. A lost leader is replaced within 1.2 to 2.4 s. If both other members stand in the same
	// tick, one election in ten, it takes that long again, which is still within the 5 s that a client should wait at
	// most.
	heartbeat = 120
	election  = 1200

	quota = 2 << 30 // bytes of the database file; etcd's default

	promotePause = 500 * time.Millisecond // between two attempts of a learner to be promoted

	// requestTimeout is etcd's timeout of a write with this election time.
	requestTimeout = 5*time.Second + 2*election*time.Millisecond
)

// TLS names the files of a member: certificates of the etcd CA, as a server and as a client of other members.
type TLS struct {
	CA                    string
	ServerCert, ServerKey string // with the DNS name PeerName
	ClientCert, ClientKey string
}

// MetricsPort is the TCP port at which a member serves its metrics where the settings ask for it.
const MetricsPort = 2381

// PeerPort is the TCP port on which members reach each other.
const PeerPort = 2380

// Config describes a member.
type Config struct {
	Dir    string // data directory
	Socket string // unix socket for clients on this machine; its folder gets mode 0700
	Name   string // name of the member: that of the server
	// Peer is the HOST:PORT at which other members reach this one. Listen is the HOST:PORT to listen on, empty for
	// Peer.
	Peer, Listen string
	Cluster      string // token of the cluster; members of another one are refused
	TLS          TLS
	// Join lists the members of the cluster to join, this one included; empty for a new cluster. It is ignored if Dir
	// holds a member.
	Join []Member
	// Reset makes a new cluster of this member alone, with the data that it has, after a majority is lost.
	Reset      bool
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// Failing, if not nil, is called with true when the cluster has had no leader for longer than an election takes,
	// and with false when it has one again.
	Failing func(bool)
	// Metrics are the HOST:PORTs at which etcd's metrics and health are served over plain HTTP; empty for none.
	Metrics []string
	// Args are the user's flags for etcd, as NAME=VALUE. They take precedence; see CheckArgs.
	Args []string
}

// Member is one member of the cluster.
type Member struct {
	ID      uint64 `json:"id,string"`
	Name    string `json:"name"` // empty until the member has started once
	Peer    string `json:"peer"` // HOST:PORT
	Learner bool   `json:"learner,omitempty"`
	Leader  bool   `json:"leader,omitempty"`
	Self    bool   `json:"self,omitempty"`
	// Unreachable means that the member that reports has no connection with this one.
	Unreachable bool `json:"unreachable,omitempty"`
}

// Status is the state of a member and its view of the cluster.
type Status struct {
	Revision    int64    `json:"revision"`
	FileBytes   int64    `json:"fileBytes"`
	InUseBytes  int64    `json:"inUseBytes"`
	Learner     bool     `json:"learner,omitempty"`
	HasLeader   bool     `json:"hasLeader"`
	Alarms      []string `json:"alarms,omitempty"`
	Members     []Member `json:"members"`
	DefragError string   `json:"defragError,omitempty"`
}

// Exists reports whether a directory holds a member, that is, a write-ahead log. A start that was interrupted before
// that has not stored anything of its cluster.
func Exists(dir string) bool { return wal.Exist(filepath.Join(dir, "member", "wal")) }

// Server is a running member. Open creates it and Close ends it.
type Server struct {
	cfg     Config
	etcd    *embed.Etcd
	started chan struct{} // closed when the field etcd is set
	fatal   chan error    // errors for which etcd would end the process
	failed  chan error    // the reason why the member ended without Close
	metrics *collector    // nil without metrics
	close   sync.Once
	broken  atomic.Bool // etcd tried to end the process while it held locks: waiting for it would block for ever
	quiet   atomic.Bool // closing or without a leader: etcd's log is written at level debug

	transport rafthttp.Transporter
	seekNow   chan struct{}

	mu        sync.Mutex
	defragErr error
	moved     map[uint64]string // member to address, from Moved
}

// resetMark is the file that a reset leaves in Dir. A start without Reset removes it.
const resetMark = "reset-done"

// ErrResetTwice means that Reset was set at two starts in a row, which would drop the members that joined in between.
var ErrResetTwice = errors.New("the cluster was reset already: start without cluster-reset")

// ErrRemoved means that the cluster has removed this member.
var ErrRemoved = errors.New("this server is not a member of the cluster any more: its node was deleted, or the " +
	"cluster was reset without it; to join again, run `umiak cleanup --purge` and start it with a token")

// ErrBroken means that etcd failed in a way for which it would end the process, for instance because it cannot write.
// It still holds locks and files, so it cannot be opened again in this process.
var ErrBroken = errors.New("etcd has ended itself")

// Open starts the member. Run waits until the member is ready.
func Open(cfg Config) (_ *Server, err error) {
	fail := func(err error) (*Server, error) { return nil, fmt.Errorf("open etcd in %s: %w", cfg.Dir, err) }
	for _, dir := range []string{cfg.Dir, filepath.Dir(cfg.Socket)} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o700)); err != nil {
			return fail(err)
		}
	}
	if err := os.Remove(cfg.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	mark := filepath.Join(cfg.Dir, resetMark)
	_, marked := os.Stat(mark)
	switch {
	case cfg.Reset && marked == nil:
		return fail(ErrResetTwice)
	case cfg.Reset && !Exists(cfg.Dir):
		return fail(errors.New("there is no member to reset; restore a snapshot instead"))
	case !cfg.Reset && marked == nil:
		if err := os.Remove(mark); err != nil {
			return fail(err)
		}
	}
	s := &Server{cfg: cfg, fatal: make(chan error, 1), failed: make(chan error, 1), started: make(chan struct{}),
		seekNow: make(chan struct{}, 1)}
	if len(cfg.Join) > 0 && !Exists(cfg.Dir) {
		if err := os.WriteFile(filepath.Join(cfg.Dir, joiningMark), nil, 0o600); err != nil {
			return fail(err)
		}
	}
	ec, err := s.embedConfig()
	if err != nil {
		return fail(err)
	}
	if err := s.begin(ec); err != nil {
		return fail(err)
	}
	close(s.started)
	if s.transport, err = transportOf(s.etcd.Server); err != nil {
		s.etcd.Close()
		return fail(err)
	}
	go s.awaitEnd()
	if cfg.Registerer != nil {
		s.metrics = &collector{from: prometheus.DefaultGatherer}
		if err := cfg.Registerer.Register(s.metrics); err != nil {
			s.metrics = nil
			cfg.Log.Warn("etcd has no metrics", "error", err)
		}
	}
	return s, nil
}

// begin starts etcd. If etcd tries to end the process meanwhile, only its goroutine ends, and begin returns ErrBroken.
func (s *Server) begin(ec *embed.Config) error {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	done := make(chan result, 1)
	go func() {
		e, err := embed.StartEtcd(ec)
		done <- result{e, err}
	}()
	select {
	case r := <-done:
		s.etcd = r.etcd
		return r.err
	case err := <-s.fatal:
		return fmt.Errorf("%w: %w", ErrBroken, err)
	}
}

func peerURL(address string) url.URL { return url.URL{Scheme: "https", Host: address} }

func (s *Server) embedConfig() (*embed.Config, error) {
	cfg := s.cfg
	c, applyArgs := newEmbedConfig(cfg.Args)
	c.Name, c.Dir = cfg.Name, cfg.Dir
	socket := url.URL{Scheme: "unix", Path: cfg.Socket}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peerURL(cfg.Peer)}, []url.URL{peerURL(cfg.Peer)}
	if cfg.Listen != "" {
		c.ListenPeerUrls = []url.URL{peerURL(cfg.Listen)}
	}
	c.PeerTLSInfo = cfg.TLS.info()
	c.InitialClusterToken = cfg.Cluster
	c.InitialCluster = cfg.Name + "=" + c.AdvertisePeerUrls[0].String()
	if len(cfg.Join) > 0 {
		c.ClusterState = embed.ClusterStateFlagExisting
		var all []string
		found := false
		for _, m := range cfg.Join {
			name := m.Name
			if m.Peer == cfg.Peer {
				name, found = cfg.Name, true
			} else if name == "" {
				// a member that has not started has no name; only its address counts
				name = fmt.Sprintf("member-%x", m.ID)
			}
			u := peerURL(m.Peer)
			all = append(all, name+"="+u.String())
		}
		if !found {
			return nil, fmt.Errorf("the members to join do not include this member's address %s", cfg.Peer)
		}
		c.InitialCluster = strings.Join(all, ",")
	}
	c.ForceNewCluster = cfg.Reset
	c.EnableGRPCGateway = false
	again := resender{timeout: requestTimeout, member: func(ctx context.Context) (member, error) {
		select { // etcd serves shortly before StartEtcd returns
		case <-s.started:
			return s.etcd.Server, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainUnaryInterceptor(again.unary)}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(cfg.Log, s.fatal, &s.quiet))
	c.ListenMetricsUrls = cfg.metricsURLs()
	return c, applyArgs()
}

// Endpoint returns the URL of the unix socket for clients on this machine.
func (s *Server) Endpoint() string { return "unix://" + s.cfg.Socket }

// Run waits until the member takes writes, calls ready, and serves until ctx ends. It does not close the member.
func (s *Server) Run(ctx context.Context, ready func()) error {
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		if !s.broken.Load() {
			wg.Wait()
		}
	}()
	wg.Go(func() { s.seek(run) })
	if err := s.becomeReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	ready()
	wg.Go(func() { s.publishAddress(run) })
	wg.Go(func() { s.maintain(run) })
	wg.Go(func() { s.removeStale(run) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// awaitEnd waits for the end of the member and sends the reason to failed.
func (s *Server) awaitEnd() {
	select {
	case err := <-s.fatal:
		s.broken.Store(true)
		s.failed <- fmt.Errorf("%w: %w", ErrBroken, err)
	case err, ok := <-s.etcd.Err():
		if ok {
			s.failed <- fmt.Errorf("serve etcd: %w", err)
		}
	case <-s.etcd.Server.StopNotify():
		s.failed <- ErrRemoved
	}
}

func (s *Server) becomeReady(ctx context.Context) error {
	srv := s.etcd.Server
	select {
	case <-srv.ReadyNotify():
	case <-ctx.Done():
		return ctx.Err()
	case err := <-s.failed:
		return err
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	if s.cfg.Reset {
		if err := os.WriteFile(filepath.Join(s.cfg.Dir, resetMark), nil, 0o600); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	if srv.IsLearner() {
		s.cfg.Log.Info("catching up with the cluster")
		// Only the leader knows when this member has caught up. It refuses to promote it before.
		for srv.IsLearner() {
			if _, err := srv.PromoteMember(ctx, uint64(srv.MemberID())); err != nil {
				s.cfg.Log.Debug("not promoted yet", "error", err)
			}
			if err := retry.Sleep(ctx, promotePause); err != nil {
				return err
			}
		}
		s.cfg.Log.Info("this server is a full member of the cluster now")
	}
	if err := os.Remove(filepath.Join(s.cfg.Dir, joiningMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("etcd: %w", err)
	}
	return nil
}

// publishAddress writes this member's current address into the cluster's member list, and tries until it succeeds: the
// list may still have the address at another member, until that one has published its new one.
func (s *Server) publishAddress(ctx context.Context) {
	failed := func(err error, pause time.Duration) {
		s.cfg.Log.Warn("cannot publish this server's new address in the cluster yet, trying again", "in", pause,
			"error", err)
	}
	_ = retry.Do(ctx, retry.Backoff{}, failed, s.updateAddress) // fails only when ctx ends
}

// updateAddress writes this member's address into the cluster's member list if it has changed.
func (s *Server) updateAddress(ctx context.Context) error {
	srv := s.etcd.Server
	u := peerURL(s.cfg.Peer)
	want := []string{u.String()}
	me := srv.Cluster().Member(srv.MemberID())
	if me == nil || slices.Equal(me.PeerURLs, want) {
		return nil
	}
	for _, m := range s.Members() {
		if !m.Self && m.Peer == s.cfg.Peer {
			return fmt.Errorf("in the cluster's member list, server %s still has the address %s; it has not published "+
				"another one", m.Name, s.cfg.Peer)
		}
	}
	s.cfg.Log.Info("publishing this server's new address in the cluster", "old", me.PeerURLs, "new", want)
	if err := s.setAddress(ctx, uint64(srv.MemberID()), s.cfg.Peer); err != nil {
		return fmt.Errorf("publish the address %s: %w", s.cfg.Peer, err)
	}
	return nil
}

// Close stops the member. A leader hands over to another member first. A member that failed with ErrBroken is left as
// it is: only the end of the process releases it.
func (s *Server) Close() error {
	s.close.Do(func() {
		if s.metrics != nil {
			s.metrics.off.Store(true)
		}
		s.quiet.Store(true) // etcd logs each closed listener as an error
		if s.broken.Load() {
			return
		}
		select {
		case <-s.etcd.Server.ReadyNotify():
		default:
			// A member that never had a majority does not serve, and etcd's Close would wait until it does.
			s.etcd.Server.HardStop()
		}
		s.etcd.Close()
	})
	return nil
}

// Revision returns the newest revision that this member has applied.
func (s *Server) Revision() int64 { return s.etcd.Server.KV().Rev() }

const exportPage = 1000 // keys that Export reads at once

// Export visits every key as of a revision, in key order. Lease in the visited keys is the TTL in seconds, not an ID.
func (s *Server) Export(ctx context.Context, rev int64, visit func(*mvccpb.KeyValue) error) error {
	leases := map[int64]int64{}
	for key := []byte{0}; ; {
		r, err := s.etcd.Server.KV().Range(ctx, key, []byte{}, mvcc.RangeOptions{Limit: exportPage, Rev: rev})
		if err != nil {
			return fmt.Errorf("read keys from %q on: %w", key, err)
		}
		for _, kv := range r.KVs {
			key = append(append(key[:0:0], kv.Key...), 0)
			if kv.Lease != 0 {
				seconds, ok := leases[kv.Lease]
				if !ok {
					l, err := s.etcd.Server.LeaseTimeToLive(ctx, &etcdserverpb.LeaseTimeToLiveRequest{ID: kv.Lease})
					if errors.Is(err, lease.ErrLeaseNotFound) {
						continue // the lease has expired, and with it the key
					}
					if err != nil {
						return fmt.Errorf("read the lease of %q: %w", kv.Key, err)
					}
					seconds = l.GrantedTTL
					leases[kv.Lease] = seconds
				}
				kv.Lease = seconds
			}
			if err := visit(kv); err != nil {
				return err
			}
		}
		if len(r.KVs) < exportPage {
			return nil
		}
	}
}
