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
	"strconv"
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

// Version is that of the etcd in this program.
func Version() string { return version.Version }

// PeerName is the DNS name that every member's serving certificate has. It is what members verify, so an
// address may change without a new certificate.
const PeerName = "etcd.umiak"

const (
	// commitInterval is how often what is in the log already goes into the file of keys as well: one
	// write in five seconds instead of ten a second, which flash feels. Reads do not wait for it.
	commitInterval = 5 * time.Second
	// A raft snapshot after so many entries: they are kept in memory until then.
	snapshotEntries = 5000
	catchUpEntries  = 2500
	// A link of 20 ms that loses packets, or an SD card that takes its time, must not look like a lost leader. A
	// lost one is replaced within 1.2 to 2.4 s; when both others try in the same tick, one time in ten, it takes as
	// long again, and that is still less than the 5 s that a client should have to wait.
	heartbeat = 120
	election  = 1200

	quota = 2 << 30 // etcd's own default, said aloud

	promotePause = 500 * time.Millisecond

	// requestTimeout is etcd's own for a write, with these elections.
	requestTimeout = 5*time.Second + 2*election*time.Millisecond
)

// TLS are the files of a member: certificates of the etcd CA, to serve with and to call others with.
type TLS struct {
	CA                    string
	ServerCert, ServerKey string // with the DNS name PeerName
	ClientCert, ClientKey string
}

// PeerPort is the port at which members reach each other.
const PeerPort = 2380

// Config says what the member is.
type Config struct {
	Dir    string // its files
	Socket string // where it serves this machine; the folder becomes 0700
	Name   string // of the server
	// Peer is the address and port at which other members reach it, Listen where it listens if that differs.
	Peer, Listen string
	Cluster      string // tells clusters apart
	TLS          TLS
	// Join are the members of the cluster that has taken this one in, itself included; none for a new
	// cluster. It counts only while the directory is empty.
	Join []Member
	// Reset makes a cluster of this member alone, out of what it has. For when a majority is lost.
	Reset      bool
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	// Failing, if set, is called with true when there has been no leader for a while, and with false when there is one.
	Failing func(bool)
}

// Member is one member of the cluster.
type Member struct {
	ID      uint64 `json:"id,string"`
	Name    string `json:"name"` // empty until it has started once
	Peer    string `json:"peer"` // address and port
	Learner bool   `json:"learner,omitempty"`
	Leader  bool   `json:"leader,omitempty"`
	Self    bool   `json:"self,omitempty"`
	// Unreachable means that this member has no connection with it.
	Unreachable bool `json:"unreachable,omitempty"`
}

// Status is what there is to say about the member.
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

// Exists says whether a directory holds a member: one that has begun to write its log, since a start that
// was broken off before that knows nothing of its cluster.
func Exists(dir string) bool { return wal.Exist(filepath.Join(dir, "member", "wal")) }

// Server is a member. Create one with Open and end it with Close.
type Server struct {
	cfg     Config
	etcd    *embed.Etcd
	started chan struct{} // closed when etcd is there
	fatal   chan error    // what etcd would end the process for
	failed  chan error    // why the member has ended by itself
	metrics *collector    // nil if there are none
	close   sync.Once
	broken  atomic.Bool // etcd has wished to end the process, with locks held: nothing of it can be waited for
	hushed  atomic.Bool // closing, or there is no leader: etcd's own complaints say nothing new

	transport rafthttp.Transporter
	seekNow   chan struct{}

	mu        sync.Mutex
	defragErr error
	moved     map[uint64]string // addresses that Moved was told
}

// resetMark is there after a reset, until a start without one.
const resetMark = "reset-done"

// ErrResetTwice means that Reset was left on: members that joined since would be dropped again.
var ErrResetTwice = errors.New("the cluster was reset already: start without cluster-reset")

// ErrRemoved is why a member ends, or does not start, whose cluster goes on without it.
var ErrRemoved = errors.New("this server is not a member of the cluster any more: its node was deleted, or the cluster was reset without it; to join again, run `umiak cleanup --purge` and start it with a token")

// ErrBroken means that etcd has given up where it would end the process, as when it cannot write. It holds locks and files:
// it cannot be opened again in this process.
var ErrBroken = errors.New("etcd has ended itself")

// Open starts the member. It may still have to find its cluster; see WaitReady.
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
	s := &Server{cfg: cfg, fatal: make(chan error, 1), failed: make(chan error, 1), started: make(chan struct{}), seekNow: make(chan struct{}, 1)}
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
	go s.notice()
	if cfg.Registerer != nil {
		s.metrics = &collector{from: prometheus.DefaultGatherer}
		if err := cfg.Registerer.Register(s.metrics); err != nil {
			s.metrics = nil
			cfg.Log.Warn("etcd has no metrics", "err", err)
		}
	}
	return s, nil
}

// begin starts etcd. It may wish to end the process meanwhile, which is the end of the goroutine that it runs in.
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
	c, cfg := embed.NewConfig(), s.cfg
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
				name = fmt.Sprintf("member-%x", m.ID) // it has not started yet; only its address counts
			}
			u := peerURL(m.Peer)
			all = append(all, name+"="+u.String())
		}
		if !found {
			return nil, fmt.Errorf("the cluster does not have this member's address %s", cfg.Peer)
		}
		c.InitialCluster = strings.Join(all, ",")
	}
	c.ForceNewCluster = cfg.Reset
	c.TickMs, c.ElectionMs = heartbeat, election
	c.BackendBatchInterval = commitInterval
	c.BackendFreelistType = "map"
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotEntries, catchUpEntries
	c.MaxWalFiles, c.MaxSnapFiles = 2, 2
	c.QuotaBackendBytes = quota
	if strconv.IntSize == 32 {
		// The file is mapped whole: etcd asks for a tenth more than this, and bbolt takes the next power of two, of the 2
		// or 3 GiB of addresses that a program has there.
		c.QuotaBackendBytes = 448 << 20
	}
	c.MaxLearners = 3
	c.EnableGRPCGateway = false
	again := resender{timeout: requestTimeout, member: func(ctx context.Context) (member, error) {
		select { // etcd may serve a moment before StartEtcd returns
		case <-s.started:
			return s.etcd.Server, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	c.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainUnaryInterceptor(again.unary)}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(cfg.Log, s.fatal, &s.hushed))
	return c, nil
}

// Endpoint is for clients on this machine.
func (s *Server) Endpoint() string { return "unix://" + s.cfg.Socket }

// Run waits until the member takes writes, calls ready, and serves until ctx ends. It does not close.
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
	wg.Go(func() { s.keepAddress(run) })
	wg.Go(func() { s.maintain(run) })
	wg.Go(func() { s.removeStale(run) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.failed:
		return err
	}
}

// notice waits for what ends the member without our asking, or for its end.
func (s *Server) notice() {
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
		// The leader knows when we have caught up, and we only that it has promoted us.
		for srv.IsLearner() {
			if _, err := srv.PromoteMember(ctx, uint64(srv.MemberID())); err != nil {
				s.cfg.Log.Debug("not promoted yet", "err", err)
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

// keepAddress tells the cluster where this member is now. Another member may still have the address, until that one has
// told its own.
func (s *Server) keepAddress(ctx context.Context) {
	failed := func(err error, pause time.Duration) {
		s.cfg.Log.Warn("cannot publish this server's new address in the cluster yet, trying again", "in", pause,
			"error", err)
	}
	_ = retry.Do(ctx, retry.Backoff{}, failed, s.updateAddress) // it fails only when ctx ends
}

// updateAddress tells the cluster where this member is now, if that has changed.
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
			return fmt.Errorf("the cluster knows the address %s as that of server %s, which has not told another one", s.cfg.Peer, m.Name)
		}
	}
	s.cfg.Log.Info("telling the cluster this server's new address", "old", me.PeerURLs, "new", want)
	if err := s.setAddress(ctx, uint64(srv.MemberID()), s.cfg.Peer); err != nil {
		return fmt.Errorf("tell the cluster the new address %s: %w", s.cfg.Peer, err)
	}
	return nil
}

// Close stops the member. If it leads, another one takes over first. One that has broken stays as it is: only the end of
// the process ends it.
func (s *Server) Close() error {
	s.close.Do(func() {
		if s.metrics != nil {
			s.metrics.off.Store(true)
		}
		s.hushed.Store(true) // it reports each of its listeners as failed
		if s.broken.Load() {
			return
		}
		select {
		case <-s.etcd.Server.ReadyNotify():
		default:
			// One that has never had a majority does not serve yet, and etcd's Close would wait until it does.
			s.etcd.Server.HardStop()
		}
		s.etcd.Close()
	})
	return nil
}

// Revision is the newest that this member has.
func (s *Server) Revision() int64 { return s.etcd.Server.KV().Rev() }

const exportPage = 1000

// Export visits every key as it is at a revision, in order. A key's lease is its number of seconds.
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
						continue // it has ended, and so has its key
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
