package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
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

	clients kubeclient.Source
	store   *storage.Current
	runner  *storage.Runner
	cluster *cluster.Cluster
	shared  joinwire.Datastore // "" where this server can have no others beside it

	tokensWake lifecycle.Signal
	tokenNotes atomic.Pointer[map[string]string] // what is wrong with tokens in the settings, by id

	nodeName chan string // of this server's node, once it joins

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

// WithEtcdMembers makes the server start as a member of the etcd cluster with these members, as cluster.Join returns them.
// They count only while the server has no state of its own.
func WithEtcdMembers(members []etcd.Member) Option { return func(o *options) { o.members = members } }

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
	s := &Server{cfg: cfg, dirs: cfg.Dirs(), log: log, health: &controlplane.Health{}, nodeName: make(chan string, 1), release: func() {},
		clients: cfg.clients(), store: &storage.Current{}, tokensWake: lifecycle.NewSignal()}
	if s.addrs = o.addrs; s.addrs == nil {
		if s.addrs, err = Addresses(ctx, cfg, log); err != nil {
			return nil, err
		}
	}
	if _, err := advertiseAddress(cfg, s.nodeIPs()); err != nil && !errors.Is(err, nodeip.ErrNone) {
		return nil, err
	}
	s.bind = bindAddress(cfg)
	dc := cfg.datastoreConfig("", log)
	dc.Etcd.Join = o.members
	s.shared = sharedDatastore(dc)
	if s.shared != "" { // the others are told one address, and all that is made here is of that one
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
	if err := s.prepare(o.pki, etcdLeaves(dc)); err != nil {
		return nil, err
	}
	dc = s.cfg.datastoreConfig(s.advertise(), log)
	dc.Registerer, dc.Etcd.Join = legacyregistry.Registerer(), o.members
	s.tunnels = s.newTunnels()
	if s.cluster, err = s.newCluster(len(o.members) > 0); err != nil {
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
	s.reachNodes()
	s.runner = storage.New(storage.Config{
		Datastore: dc, Current: s.store, Claimer: s.cluster.Claimer(), Failing: o.muffle, Log: log,
		Opened: func(st datastore.Store) {
			s.plane.APIServer.UseDatastore(st.Endpoint(), st.VolatileEndpoint())
			tls := st.TLS()
			s.plane.APIServer.UseDatastoreTLS(tls.CAFile, tls.CertFile, tls.KeyFile)
		},
	})
	s.health.Register("datastore", s.store.Check)
	s.plane.APIServer.Stalled = s.store.Stalled
	s.snapshots = s.cfg.snapshotKeeper(s.store.Snapshots, log)
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
		{Name: "datastore", Run: s.runner.Run},
		{Name: "node-tunnels", Run: s.tunnels.Run},
		{Name: "kube-apiserver", After: []string{"datastore", "certificates", "node-tunnels"}, Run: s.plane.APIServer.Run},
	}
	alone, leader := func(_ string, run lifecycle.Run) lifecycle.Run { return run }, "kube-apiserver"
	if s.cluster.Several() {
		parts = append(parts,
			lifecycle.Part{Name: "other-servers", After: []string{"kube-apiserver"}, Run: s.cluster.Peers.Run},
			lifecycle.Part{Name: "election", After: []string{"kube-apiserver"}, Run: s.cluster.Elect})
		alone, leader = s.cluster.Election.While, "election"
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
	if s.cluster.Several() {
		parts = append(parts,
			lifecycle.Part{Name: "cluster-keys", After: []string{"tokens", "join-api", "other-servers"}, Run: s.cluster.Record.Run},
			lifecycle.Part{Name: "shared-keys", After: []string{"datastore"}, Run: s.cluster.Keys.Run})
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

// newCluster returns this server's part in the cluster. Joining means that the server was taken into an etcd cluster and has
// no state yet.
func (s *Server) newCluster(joining bool) (*cluster.Cluster, error) {
	return cluster.New(cluster.Config{
		Name: s.cfg.NodeName, Address: s.published(), Dirs: s.dirs, Settings: s.cfg.shared(), Shared: s.shared,
		Joining: joining, Reset: s.cfg.ClusterReset, PKI: s.pki, Datastore: s.store, Tunnels: s.tunnels, Clients: s.clients,
		Tokens: func() (joinapi.Tokens, error) {
			t, _, err := s.tokens()
			return t, err
		},
		TakenOver: s.takenOver, Log: s.log,
	})
}

// takenOver makes the parts of this server use the authorities and keys that are in force now.
func (s *Server) takenOver() {
	if err := s.plane.APIServer.ReloadAccountKeys(); err != nil {
		s.log.Error("the API server does not verify ServiceAccount tokens with the keys of now; start this server again",
			"component", "certificates", "error", err)
	}
	s.tokensWake.Set() // they hold the hash of the CA
}

// bindAddress is where to listen: "::" takes both families, where there is IPv6 at all.
func bindAddress(cfg Config) string {
	if cfg.BindAddress.IsValid() {
		return cfg.BindAddress.String()
	}
	if nodeip.FamiliesOf(cfg.ServiceCIDR).V6 {
		return "::"
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
	return net.JoinHostPort(host, s.cfg.HTTPSPort.String())
}

// settings are what the components get.
func (s *Server) settings() controlplane.Settings {
	c, p := s.cfg, s.pki
	audit := c.AuditPolicy
	if audit == "" {
		audit = s.auditPolicyFile()
	}
	return controlplane.Settings{
		Bind: s.bind, Port: int(c.HTTPSPort), Advertise: s.advertise,
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR, NodePorts: c.NodePorts.String(), ClusterDomain: c.ClusterDomain,
		OtherIPAM: c.FlannelBackend == "none",
		Nodes:     s.join, ClusterIPRouting: !c.DisableAgent, UpgradesOff: s.upgradesOff(), Services: s.serviceLimits(),
		HighAvailability: s.cluster.Several(),
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
