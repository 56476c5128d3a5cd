package server

import (
	"log/slog"
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/addons"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/dnsendpoints"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/ownnode"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/servicelb"
	"github.com/umiak-io/umiak/server/storage"
	"github.com/umiak-io/umiak/server/tunnel"
	"github.com/umiak-io/umiak/server/upgrades"
)

// Server is one server of a cluster: the values that its parts are made of.
type Server struct {
	cfg          Config
	log          *slog.Logger
	pki          *pki.PKI
	address      *advertise.Address
	store        *storage.Current
	runner       *storage.Runner
	tunnels      *tunnel.Tunnels
	cluster      *cluster.Cluster
	tokens       *joinapi.FirstTokens
	join         *joinapi.API
	health       *controlplane.Health
	plane        *controlplane.ControlPlane
	manifests    *addons.Part
	balancer     *servicelb.Controller
	dnsEndpoints *dnsendpoints.Controller
	upgrades     *upgrades.Controller
	snapshots    *backup.Keeper
	node         *ownnode.Node
}

// New makes sure that keys, certificates and kubeconfigs are there, and checks all settings. It starts nothing. The
// data directory must be locked by the caller.
func New(cfg Config, start Start, log *slog.Logger) (*Server, error) {
	return assemble(cfg, start, pki.Config{}, log)
}

// assemble is New with the lifetimes of certificates, which tests shorten.
func assemble(cfg Config, start Start, lifetimes pki.Config, log *slog.Logger) (_ *Server, err error) {
	if err := cfg.settle(start, log); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log, store: &storage.Current{}, health: &controlplane.Health{}}
	if s.address, err = advertise.New(cfg.advertiseConfig(start.Addresses, s.publish)); err != nil {
		return nil, err
	}
	dc := cfg.datastoreConfig(s.address.IP(), log)
	dc.Etcd.Join = start.Members
	cfg.remarkEtcd(dc, log)
	if s.pki, err = cfg.keys(lifetimes, start.Addresses, dc, log); err != nil {
		return nil, err
	}
	clients := cfg.clients()
	access := joinapi.Access{Clients: clients, ServerCA: func() []byte { return s.pki.CAPEM(pki.ServerCA) },
		Secret: s.pki.SharedSecret}
	s.tunnels = tunnel.NewTunnels(tunnel.Identity{ClientCA: s.pki.CACert(pki.ClientCA), Admits: s.admits}, log)
	if s.cluster, err = cluster.New(cluster.Config{
		Name: cfg.NodeName, Address: s.address.HostPort(), Dirs: cfg.Dirs(), Settings: cfg.shared(),
		Shared:  sharedDatastore(dc),
		Joining: len(start.Members) > 0, Reset: cfg.ClusterReset, PKI: s.pki, Datastore: s.store, Tunnels: s.tunnels,
		Clients: clients, Access: access, TakenOver: s.takenOver, Log: log,
	}); err != nil {
		return nil, err
	}
	if s.tokens, err = joinapi.NewFirstTokens(joinapi.FirstTokensConfig{
		Access: access, Tokens: cfg.firstTokens(), Changed: s.cluster.Record.Changed, Log: log,
	}); err != nil {
		return nil, err
	}
	s.join = joinapi.New(joinapi.Config{
		Signer: s.pki, Cluster: cfg.facts(), Servers: s.cluster.Admission, Self: cfg.ownNode(), Own: s.address.HostPort,
		Name: cfg.NodeName, DNSNames: cfg.servingNames(), SANs: cfg.servingSANs(),
		IPs:    func() []string { return cfg.servingIPs(start.Addresses) },
		Access: access, WaitReady: s.waitReady, Etcd: etcd.Version(), TokensChanged: s.tokens.Stale, Log: log,
	})
	settings := cfg.controlPlane(s.pki)
	settings.Advertise, settings.Nodes, settings.HighAvailability = s.address.IP, s.join, s.cluster.Several()
	settings.Services.Servers = s.serverAddresses
	if s.plane, err = controlplane.New(settings, s.health, log); err != nil {
		return nil, err
	}
	s.plane.APIServer.Front(joinwire.Prefix, s.join)
	s.plane.APIServer.Front(tunnelwire.Path, s.tunnels)
	s.plane.APIServer.DialWith(tunnel.NewDialer(s.tunnels, tunnel.DialerConfig{
		Pods: cfg.ClusterCIDR, Self: cfg.ownNode(),
		Disputed: func(node string, a netip.Addr) bool {
			return s.join.Disputed(node, a) ||
				s.join.Unregistered(node, a)
		},
	}))
	s.join.OnLeave(func(node string) { go s.tunnels.Left(node) })
	s.plane.APIServer.Stalled = s.store.Stalled
	s.health.Register("datastore", s.store.Check)
	s.runner = storage.New(storage.Config{
		Datastore: withMetrics(dc), Current: s.store, Claimer: s.cluster.Claimer(), Failing: start.Failing, Log: log,
		Opened: func(st datastore.Store) {
			tls := st.TLS()
			s.plane.APIServer.UseDatastore(st.Endpoint(), st.VolatileEndpoint())
			s.plane.APIServer.UseDatastoreTLS(tls.CAFile, tls.CertFile, tls.KeyFile)
		},
	})
	if s.manifests, err = cfg.addons(s.cluster, log); err != nil {
		return nil, err
	}
	s.balancer = cfg.loadBalancer(s.join, log)
	s.dnsEndpoints = dnsendpoints.New(dnsendpoints.Config{
		Client: clients.Maker("umiak-dns-endpoints"), ClusterDNS: cfg.DNS(), Off: !cfg.dnsEndpoints(), Log: log,
	})
	s.upgrades = upgrades.New(upgrades.Config{
		REST: clients.ConfigMaker("umiak-upgrades"), Version: version.Version, Disabled: cfg.upgradesOff(), Log: log,
	})
	s.snapshots = cfg.snapshotKeeper(s.store.Snapshots, log)
	s.node = ownnode.New(ownnode.Config{
		Dirs: cfg.Dirs(), Name: cfg.NodeName, URL: cfg.loopbackURL(), Addresses: start.Addresses, Facts: cfg.facts(),
		PKI:       s.pki,
		WaitReady: s.waitReady, Access: access, Clients: clients, Log: log,
	})
	return s, nil
}

// Parts returns everything that a server runs, in start order.
func (s *Server) Parts(node NodeHooks) []lifecycle.Part {
	s.plane.ControllerManager.VolumeControllersMade = node.VolumeControllersMade
	alone, lead := func(_ string, run lifecycle.Run) lifecycle.Run { return run }, "kube-apiserver"
	if s.cluster.Several() {
		alone, lead = s.cluster.Election.While, "election"
	}
	leading := func(name string, run lifecycle.Run) lifecycle.Part {
		return lifecycle.Part{Name: name, After: []string{lead}, Run: alone(name, run)}
	}
	part := func(name string, run lifecycle.Run, after ...string) lifecycle.Part {
		return lifecycle.Part{Name: name, After: after, Run: run}
	}
	parts := []lifecycle.Part{
		part("certificates", s.pki.Run),
		// A start needs nothing but its first look, and nothing else ends when it fails.
		lifecycle.Restart(part(nodeip.Part, s.address.Run), lifecycle.Policy{}),
		part("control", s.control().Run),
		part("datastore", s.runner.Run),
		part("node-tunnels", s.tunnels.Run),
		part("kube-apiserver", s.plane.APIServer.Run, "datastore", "certificates", "node-tunnels"),
	}
	if s.cluster.Several() {
		parts = append(parts, part("other-servers", s.cluster.Peers.Run, "kube-apiserver"),
			part("election", s.cluster.Elect, "kube-apiserver"))
	}
	parts = append(parts, leading("kube-controller-manager", s.plane.ControllerManager.Run))
	if s.plane.Scheduler != nil {
		parts = append(parts, leading("kube-scheduler", s.plane.Scheduler.Run))
	}
	afterSnapshots := []string{"datastore"}
	if s.cfg.Snapshots.S3.ConfigSecret != "" { // which the API server holds
		afterSnapshots = append(afterSnapshots, "kube-apiserver")
	}
	parts = append(parts,
		leading("load-balancer", s.balancer.Run),
		leading("dns-endpoints", s.dnsEndpoints.Run),
		part("manifests", s.manifests.Run, "kube-apiserver"),
		leading("upgrades", s.upgrades.Run),
		part("snapshots", s.snapshots.Run, afterSnapshots...),
		part("tokens", s.tokens.Run, "kube-apiserver"),
		part("join-api", s.join.Run, "kube-apiserver"))
	if !s.cfg.DisableAgent {
		parts = append(parts, part("node-name", s.node.Reserve, "kube-apiserver"),
			part("node-role", s.node.Mark, "kube-apiserver"))
	}
	if s.cluster.Several() {
		parts = append(parts,
			part("cluster-keys", s.cluster.Record.Run, "tokens", "join-api", "other-servers"),
			part("shared-keys", s.cluster.Keys.Run, "datastore"))
	}
	for i, p := range parts {
		if slices.Contains(restartable, p.Name) {
			parts[i] = lifecycle.Restart(p, lifecycle.Policy{Report: node.Report})
		}
	}
	return parts
}

// restartable are the parts of the control plane that can be started again alone: their failure is not the API's. A
// failure of any other ends the process, and so does one of the datastore unless its disk is full or it was open
// before.
var restartable = []string{"datastore", "kube-controller-manager", "load-balancer", "dns-endpoints", "manifests",
	"upgrades", "snapshots", "tokens", "join-api", "node-name", "node-role"}
