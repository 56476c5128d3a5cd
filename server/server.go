package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster/leader"
	"github.com/umiak-io/umiak/server/cluster/rotation"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/tunnel"
)

// Server is one server of a cluster: what runs there and what it knows.
type Server struct {
	cfg     Config
	dirs    layout.Dirs
	log     *slog.Logger
	addrs   *nodeip.Tracker
	bind    string
	release func()

	servingIPs []string // of the API server's certificate as it is

	pki       *pki.PKI
	plane     *controlplane.ControlPlane
	tunnels   *tunnel.Tunnels
	health    *controlplane.Health
	snapshots *backup.Keeper
	join      *joinapi.API
	manifests atomic.Pointer[addons.Controller]
	reporter  lifecycle.Reporter // nil where there is no node

	// Nil where this server can have no others beside it.
	others   *others
	election *leader.Election
	rotation *rotation.Member
	keysWake chan struct{}
	started  time.Time

	tokensWake chan struct{}
	tokenNotes atomic.Pointer[map[string]string] // what is wrong with tokens in the settings, by id

	nodeName chan string // of this server's node, once it joins

	members []etcd.Member // on a server that joins others for the first time
	muffle  func(bool)

	mu    sync.Mutex
	store datastore.Store // nil until it is open
}

// Option changes what New makes.
type Option func(*options)

type options struct {
	locked  bool
	addrs   *nodeip.Tracker
	pki     pki.Config
	members []etcd.Member
	muffle  func(bool)
}

// WithoutLock is for a caller that has locked the data directory already.
func WithoutLock() Option { return func(o *options) { o.locked = true } }

// WithAddresses gives the server the node's addresses, as Addresses has made them.
func WithAddresses(t *nodeip.Tracker) Option { return func(o *options) { o.addrs = t } }

// WithMuffle has f called when the datastore stops taking writes, with true, and when it takes them again: what lives
// from it has nothing to say meanwhile that helps anybody.
func WithMuffle(f func(bool)) Option { return func(o *options) { o.muffle = f } }

// WithPKI sets the lifetimes and the clock of certificates; its Dir and Log are ignored.
func WithPKI(c pki.Config) Option { return func(o *options) { o.pki = c } }

// New locks the data directory, makes sure that keys, certificates and kubeconfigs are there, and checks
// all settings. It starts nothing. Close gives the lock back.
func New(ctx context.Context, cfg Config, log *slog.Logger, opts ...Option) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	var o options
	for _, f := range opts {
		f(&o)
	}
	s := &Server{cfg: cfg, dirs: cfg.Dirs(), log: log, health: &controlplane.Health{}, keysWake: make(chan struct{}, 1), nodeName: make(chan string, 1), release: func() {}, members: o.members, muffle: o.muffle, started: time.Now(), tokensWake: make(chan struct{}, 1)}
	if s.addrs = o.addrs; s.addrs == nil {
		if s.addrs, err = Addresses(ctx, cfg, log); err != nil {
			return nil, err
		}
	}
	if _, err := advertiseAddress(cfg, s.nodeIPs()); err != nil && !errors.Is(err, nodeip.ErrNone) {
		return nil, err
	}
	s.bind = bindAddress(cfg)
	if sharedDatastore(s.datastoreConfig()) != "" { // the others are told one address, and all that is made here is of that one
		if err := s.takeAddress(); err != nil {
			return nil, err
		}
	}
	if !o.locked {
		if s.release, err = instance.Acquire(s.dirs); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if err := s.claimName(); err != nil {
		return nil, err
	}
	if err := s.prepare(o.pki); err != nil {
		return nil, err
	}
	if s.join, err = s.newJoinAPI(); err != nil {
		return nil, err
	}
	s.plane, err = controlplane.New(s.settings(), s.health, log)
	if err != nil {
		return nil, err
	}
	s.plane.APIServer.Front(joinwire.Prefix, s.join)
	if sharedDatastore(s.datastoreConfig()) != "" {
		s.others, s.election = newOthers(s.published()), leader.New(s.etcdName(), log)
	}
	if err := s.reachNodes(); err != nil {
		return nil, err
	}
	if err := s.prepareRotation(); err != nil {
		return nil, err
	}
	s.health.Register("datastore", s.checkDatastore)
	s.plane.APIServer.Stalled = func(ctx context.Context) bool {
		ctx, cancel := context.WithTimeout(ctx, stallTime)
		defer cancel()
		_, err := s.askDatastore(ctx)
		return err != nil
	}
	s.snapshots = s.keeper()
	return s, ctx.Err()
}

// claimName settles the server's name. A node of the same process says what there is to say about it.
func (s *Server) claimName() error {
	n, err := s.cfg.claimName()
	if err != nil {
		return err
	}
	if n.Remark != "" && s.cfg.DisableAgent {
		s.log.Warn(n.Remark)
	}
	return nil
}

// Close unlocks the data directory. Call it when the parts have stopped.
func (s *Server) Close() { s.release() }

// Health is where other parts of the process register their checks.
func (s *Server) Health() *controlplane.Health { return s.health }

// Parts is everything that a server runs, in start order.
func (s *Server) Parts() []lifecycle.Part {
	parts := []lifecycle.Part{
		{Name: "certificates", Run: s.pki.Run},
		// A start needs nothing but its first look, and nothing else ends when it fails.
		lifecycle.Restart(lifecycle.Part{Name: nodeip.Part, Run: s.followAddresses}, lifecycle.Policy{}),
		{Name: "control", Run: s.control().Run},
		{Name: "datastore", Run: s.runDatastore},
		{Name: "node-tunnels", Run: s.tunnels.Run},
		{Name: "kube-apiserver", After: []string{"datastore", "certificates", "node-tunnels"}, Run: s.plane.APIServer.Run},
	}
	alone, leader := func(_ string, run lifecycle.Run) lifecycle.Run { return run }, "kube-apiserver"
	if s.others != nil {
		parts = append(parts,
			lifecycle.Part{Name: "other-servers", After: []string{"kube-apiserver"}, Run: s.followOthers},
			lifecycle.Part{Name: "election", After: []string{"kube-apiserver"}, Run: s.runElection})
		alone, leader = s.election.While, "election"
	}
	parts = append(parts, []lifecycle.Part{
		{Name: "kube-controller-manager", After: []string{leader}, Run: alone("kube-controller-manager", s.runControllers)},
		{Name: "kube-scheduler", After: []string{leader}, Run: alone("kube-scheduler", s.plane.Scheduler.Run)},
		{Name: "load-balancer", After: []string{leader}, Run: alone("load-balancer", s.runLoadBalancer)},
		{Name: "manifests", After: []string{"kube-apiserver"}, Run: s.runManifests},
		{Name: "upgrades", After: []string{leader}, Run: alone("upgrades", s.runUpgrades)},
		{Name: "snapshots", After: []string{"datastore"}, Run: s.snapshots.Run},
		{Name: "tokens", After: []string{"kube-apiserver"}, Run: s.runTokens},
		{Name: "join-api", After: []string{"kube-apiserver"}, Run: s.runJoinAPI},
	}...)
	if !s.cfg.DisableAgent {
		parts = append(parts, lifecycle.Part{Name: "node-name", After: []string{"kube-apiserver"}, Run: s.reserveName},
			lifecycle.Part{Name: "node-role", After: []string{"kube-apiserver"}, Run: s.markNode})
	}
	if s.others != nil {
		parts = append(parts,
			lifecycle.Part{Name: "cluster-keys", After: []string{"tokens", "join-api", "other-servers"}, Run: s.runKeys},
			lifecycle.Part{Name: "shared-keys", After: []string{"datastore"}, Run: s.followShared})
	}
	for i, p := range parts {
		if slices.Contains(restartable, p.Name) {
			parts[i] = lifecycle.Restart(p, lifecycle.Policy{Report: s.reporter})
		}
	}
	return parts
}

// restartable are the parts of the control plane that can be started again alone: their failure is not the API's. A
// failure of any other ends the process, and so does one of the datastore but where its disk is full or it was open before.
var restartable = []string{"datastore", "kube-controller-manager", "load-balancer", "manifests", "upgrades", "snapshots", "tokens", "join-api", "node-name", "node-role"}

// runControllers runs the controller manager. Where upstream's cannot be started again in a process because its start has
// failed, the process executes itself anew.
func (s *Server) runControllers(ctx context.Context, ready func()) error {
	err := s.plane.ControllerManager.Run(ctx, ready)
	if ctx.Err() == nil && errors.Is(err, controlplane.ErrOnceAProcess) {
		return &lifecycle.Anew{Part: "kube-controller-manager", Err: err}
	}
	return err
}

// ReportTo has somebody told of the failures of parts that are started again. Call it before Parts.
func (s *Server) ReportTo(r lifecycle.Reporter) { s.reporter = r }

// OnVolumeControllers has f called after the controllers of volumes have been made in this process; see
// controlplane.ControllerManager. Call it before the parts run.
func (s *Server) OnVolumeControllers(f func()) { s.plane.ControllerManager.VolumeControllersMade = f }

// runDatastore opens the datastore, tells the API server where it is, and serves it.
func (s *Server) runDatastore(ctx context.Context, ready func()) error {
	for {
		before := s.datastore()
		err := s.serveDatastore(ctx, ready)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case full(err) && errors.Is(err, etcd.ErrBroken):
			return &lifecycle.Anew{Part: "datastore", Err: fmt.Errorf("the disk of %s is full, free some space: %w", s.dirs.DB(), err)}
		case full(err):
			return fmt.Errorf("the disk of %s is full, free some space: %w", s.dirs.DB(), err)
		case errors.Is(err, errReopen):
		case before != nil && before == s.datastore():
			// It has been open in this process, and now cannot be, as a database that fails over.
			return err
		default:
			return lifecycle.Permanent(err)
		}
		if s.muffle != nil {
			s.muffle(false) // what is opened next does not know what this one has said
		}
		s.log.Info("the datastore is opened again with the certificates that were taken over", "component", "datastore")
	}
}

// full says whether a datastore has ended because its disk is full. etcd hands on the words of such an error alone.
func full(err error) bool {
	if errors.Is(err, datastore.ErrFull) {
		return true
	}
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}

func (s *Server) serveDatastore(ctx context.Context, ready func()) error {
	if why := s.unprotected(); why != "" {
		s.log.Warn("the database is not protected: who stands between can change everything in the cluster, and become its administrator; set datastore-cafile", "component", "datastore", "why", why)
	}
	own := s.ownKeysCount()
	st, err := datastore.Open(ctx, s.datastoreConfig())
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	s.mu.Lock()
	s.store = st
	s.mu.Unlock()
	s.plane.APIServer.UseDatastore(st.Endpoint(), st.VolatileEndpoint())
	tls := st.TLS()
	s.plane.APIServer.UseDatastoreTLS(tls.CAFile, tls.CertFile, tls.KeyFile)
	if s.others == nil {
		return st.Run(ctx, ready)
	}
	run, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	err = st.Run(run, func() {
		ctx, cancel := context.WithTimeout(run, claimTime)
		defer cancel()
		if err := s.claim(ctx, st, own); err != nil {
			fail(err)
			return
		}
		ready()
	})
	if cause := context.Cause(run); ctx.Err() == nil && cause != nil {
		err = errors.Join(cause, err)
	}
	return err
}

func (s *Server) datastoreConfig() datastore.Config {
	return datastore.Config{
		Dir: s.dirs.DB(), Socket: s.dirs.DatastoreSocket(), VolatileSocket: s.dirs.VolatileSocket(),
		Endpoint: s.cfg.DatastoreEndpoint, Log: s.log.With("component", "datastore"), Registerer: legacyregistry.Registerer(),
		TLS:         external.TLS{CAFile: s.cfg.DatastoreCA, CertFile: s.cfg.DatastoreCert, KeyFile: s.cfg.DatastoreKey},
		ClusterInit: s.cfg.ClusterInit, Etcd: s.etcdConfig(), Failing: s.muffle,
	}
}

// keeper makes the snapshots of this server.
func (s *Server) keeper() *backup.Keeper {
	return &backup.Keeper{Config: s.cfg.Snapshots, Dirs: s.dirs, Node: s.cfg.NodeName, Log: s.log.With("component", "snapshots"), Source: func() snapshot.Source {
		if st := s.datastore(); st != nil {
			return st
		}
		return nil
	}}
}

func (s *Server) datastore() datastore.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// stallTime is how long the datastore may take to answer when the server is to stop.
const stallTime = 500 * time.Millisecond

// checkDatastore returns what is wrong with the datastore; one that answers and takes no writes is not healthy.
func (s *Server) checkDatastore(ctx context.Context) error {
	d, err := s.askDatastore(ctx)
	if err != nil {
		return err
	}
	return d.Failing()
}

func (s *Server) askDatastore(ctx context.Context) (datastore.Status, error) {
	st := s.datastore()
	if st == nil {
		return datastore.Status{}, errors.New("not open yet")
	}
	return st.Status(ctx)
}

// bindAddress is where to listen: "::" takes both families, where there is IPv6 at all.
func bindAddress(cfg Config) string {
	if cfg.BindAddress != "" {
		return cfg.BindAddress
	}
	for _, c := range cfg.ServiceCIDR {
		if p, err := netip.ParsePrefix(c); err == nil && p.Addr().Is6() {
			return "::"
		}
	}
	return "0.0.0.0"
}

// loopbackURL is how this machine reaches its API server.
func (s *Server) loopbackURL() string { return "https://" + s.hostPort() }

func (s *Server) hostPort() string {
	host := "127.0.0.1"
	if ip := net.ParseIP(s.bind); ip != nil && !ip.IsUnspecified() {
		host = s.bind
	}
	return net.JoinHostPort(host, strconv.Itoa(s.cfg.HTTPSPort))
}

// settings are what the components get.
func (s *Server) settings() controlplane.Settings {
	c, p := s.cfg, s.pki
	audit := c.AuditPolicy
	if audit == "" {
		audit = s.auditPolicyFile()
	}
	return controlplane.Settings{
		Bind: s.bind, Port: c.HTTPSPort, Advertise: s.advertise,
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, NodePorts: c.NodePorts, ClusterDomain: c.ClusterDomain,
		Nodes: s.join, ClusterIPRouting: !c.DisableAgent, UpgradesOff: s.upgradesOff(), Services: s.serviceLimits(), HighAvailability: datastore.Shared(s.datastoreConfig()),
		Files: controlplane.Files{
			ServerCA: p.CACert(pki.ServerCA), ServerCASigner: p.CASigner(pki.ServerCA), ServerCAKey: p.CAKey(pki.ServerCA),
			ClientCA: p.CACert(pki.ClientCA), ClientCASigner: p.CASigner(pki.ClientCA), ClientCAKey: p.CAKey(pki.ClientCA),
			RequestHeaderCA:   p.CACert(pki.RequestHeaderCA),
			ServiceAccountKey: p.ServiceAccountKey(), ServiceAccountPublicKey: p.ServiceAccountPublicKey(),
			ServingCert: p.File("apiserver.crt"), ServingKey: p.File("apiserver.key"),
			KubeletClientCert: p.File("kubelet-client.crt"), KubeletClientKey: p.File("kubelet-client.key"),
			ProxyClientCert: p.File("front-proxy.crt"), ProxyClientKey: p.File("front-proxy.key"),
			Encryption:                  s.dirs.EncryptionConfig(),
			ControllerManagerKubeconfig: filepath.Join(s.dirs.ServerKubeconfigs(), "controller-manager.kubeconfig"),
			SchedulerKubeconfig:         filepath.Join(s.dirs.ServerKubeconfigs(), "scheduler.kubeconfig"),
		},
		AuditLog: c.auditFile(), AuditPolicy: audit,
		APIServerArgs: c.APIServerArg, ControllerManagerArgs: c.ControllerArg, SchedulerArgs: c.SchedulerArg,
	}
}

func (s *Server) auditPolicyFile() string { return filepath.Join(s.dirs.Server(), "audit-policy.yaml") }

// hostname is one more name for the serving certificate, where the machine has one.
func hostname() []string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return nil
	}
	return []string{h}
}
