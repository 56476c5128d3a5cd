package server

import (
	"log/slog"
	"net/netip"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/tunnelwire"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/advertise"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/dnsendpoints"
	"github.com/umiak-io/umiak/server/encryption"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/ownnode"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
	"github.com/umiak-io/umiak/server/tunnel"
	"github.com/umiak-io/umiak/server/upgrades"
)

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
	if err := s.assembleCluster(access, start, dc); err != nil {
		return nil, err
	}
	if err := s.assembleControlPlane(start, dc); err != nil {
		return nil, err
	}
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
	s.snapshots = backup.New(cfg.Snapshots, backup.Source{Dirs: cfg.Dirs(), Node: cfg.NodeName,
		Datastore: s.store.Snapshots, Objects: backup.KubeSystem{Client: clients.Maker("umiak-snapshots")}}, log)
	s.node = ownnode.New(ownnode.Config{
		Dirs: cfg.Dirs(), Name: cfg.NodeName, URL: cfg.loopbackURL(), Addresses: start.Addresses, Facts: cfg.facts(),
		MetricsPorts: append(s.plane.MetricsPorts(), cfg.etcdMetricsPorts(dc)...),
		PKI:          s.pki, WaitReady: s.waitReady, Access: access, Clients: clients, Log: log,
	})
	return s, nil
}

// assembleCluster makes the values with which this server is one of several and machines join.
func (s *Server) assembleCluster(access joinapi.Access, start Start, dc datastore.Config) (err error) {
	cfg, clients, log := s.cfg, s.cfg.clients(), s.log
	s.tunnels = tunnel.NewTunnels(tunnel.Identity{ClientCA: s.pki.CACert(pki.ClientCA), Admits: s.admits}, log)
	if s.cluster, err = cluster.New(cluster.Config{
		Name: cfg.NodeName, Address: s.address.HostPort(), Dirs: cfg.Dirs(), Settings: cfg.shared(),
		Shared: cluster.SharedKind(dc), Joining: len(start.Members) > 0, Reset: cfg.ClusterReset, PKI: s.pki,
		Datastore: s.store, Tunnels: s.tunnels, Clients: clients, Access: access, TakenOver: s.takenOver, Log: log,
	}); err != nil {
		return err
	}
	s.secrets = encryption.New(encryption.Config{
		Server: cfg.NodeName, File: cfg.Dirs().EncryptionConfig(), REST: clients.ConfigMaker("umiak-secrets-encrypt"),
		Datastore: s.store.Client, Share: s.cluster.Keys.ShareEncryption,
		Changed: s.cluster.Keys.EncryptionAdopted(), Log: log,
	})
	if s.tokens, err = joinapi.NewFirstTokens(joinapi.FirstTokensConfig{
		Access: access, Tokens: cfg.firstTokens(), Changed: s.cluster.Record.Changed, Log: log,
	}); err != nil {
		return err
	}
	s.join = joinapi.New(joinapi.Config{
		Signer: s.pki, Cluster: cfg.facts(), Servers: s.cluster.Admission, Self: cfg.ownNode(), Own: s.address.HostPort,
		Name: cfg.NodeName, DNSNames: cfg.serving().Names(), SANs: cfg.serving().Set(),
		IPs:    func() []string { return cfg.servingIPs(start.Addresses) },
		Access: access, WaitReady: s.waitReady, Etcd: etcd.Version(), TokensChanged: s.tokens.Stale, Log: log,
	})
	s.join.OnLeave(func(node string) { go s.tunnels.Left(node) })
	return nil
}

// assembleControlPlane makes the components of the control plane, and the datastore behind them.
func (s *Server) assembleControlPlane(start Start, dc datastore.Config) (err error) {
	settings := s.cfg.controlPlane(s.pki)
	settings.Advertise, settings.Nodes, settings.HighAvailability = s.address.IP, s.join, s.cluster.Several()
	settings.Services.Servers = s.serverAddresses
	if s.plane, err = controlplane.New(settings, s.health, s.log); err != nil {
		return err
	}
	api := s.plane.APIServer
	api.Front(joinwire.Prefix, s.join)
	api.Front(tunnelwire.Path, s.tunnels)
	api.DialWith(tunnel.NewDialer(s.tunnels, tunnel.DialerConfig{
		Pods: s.cfg.ClusterCIDR, Self: s.cfg.ownNode(),
		Disputed: func(node string, a netip.Addr) bool {
			return s.join.Disputed(node, a) || s.join.Unregistered(node, a)
		},
	}))
	api.Stalled = s.store.Stalled
	s.health.Register("datastore", s.store.Check)
	s.runner = storage.New(storage.Config{
		Datastore: withMetrics(dc), Current: s.store, Claimer: s.cluster.Claimer(), Failing: start.Failing, Log: s.log,
		Opened: func(st datastore.Store) {
			tls := st.TLS()
			api.UseDatastore(st.Endpoint(), st.VolatileEndpoint())
			api.UseDatastoreTLS(tls.CAFile, tls.CertFile, tls.KeyFile)
		},
	})
	return nil
}
