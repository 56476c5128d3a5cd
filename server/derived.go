package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/pki"
)

// clients makes clients of the server's own API server, as ownName.
func (c Config) clients() kubeclient.Source {
	return kubeclient.Source{Kubeconfig: filepath.Join(c.Dirs().ServerKubeconfigs(), ownName+".kubeconfig")}
}

// datastoreConfig describes the datastore of a server that advertises an address. Metrics are not registered.
func (c Config) datastoreConfig(advertise string, log *slog.Logger) datastore.Config {
	d := c.Dirs()
	return datastore.Config{
		Dir: d.DB(), Socket: d.DatastoreSocket(), VolatileSocket: d.VolatileSocket(),
		Endpoint: c.DatastoreEndpoint, TLS: external.TLS{CAFile: c.DatastoreCA, CertFile: c.DatastoreCert, KeyFile: c.DatastoreKey},
		ClusterInit: c.ClusterInit, Etcd: c.etcdConfig(advertise), Log: log.With("component", "datastore"),
	}
}

// etcdConfig describes this server's member of an etcd cluster. Members listen where the API server listens.
func (c Config) etcdConfig(advertise string) etcd.Config {
	p := func(name string) string { return filepath.Join(c.Dirs().ServerPKI(), name) }
	port := strconv.Itoa(etcd.PeerPort)
	return etcd.Config{
		Name: c.NodeName, Peer: net.JoinHostPort(advertise, port), Listen: net.JoinHostPort(bindAddress(c), port),
		Cluster: "umiak", Reset: c.ClusterReset,
		TLS: etcd.TLS{CA: p(string(pki.EtcdCA) + ".crt"), ServerCert: p("etcd-peer.crt"), ServerKey: p("etcd-peer.key"),
			ClientCert: p("etcd-peer-client.crt"), ClientKey: p("etcd-peer-client.key")},
	}
}

// etcdLeaves are the certificates with which members of an etcd cluster authenticate to each other, none where there is no
// such cluster. The name in them is verified, so addresses may change.
func etcdLeaves(c datastore.Config) []pki.Leaf {
	if !datastore.Clustered(c) {
		return nil
	}
	t := c.Etcd.TLS
	return []pki.Leaf{
		{Name: "etcd-peer", CA: pki.EtcdCA, CertFile: t.ServerCert, KeyFile: t.ServerKey, CommonName: "umiak:etcd",
			Server: true, DNSNames: []string{etcd.PeerName}},
		{Name: "etcd-peer-client", CA: pki.EtcdCA, CertFile: t.ClientCert, KeyFile: t.ClientKey, CommonName: "umiak:etcd"},
	}
}

// sharedDatastore returns the kind of datastore that several servers share, "" where it is this server's alone.
func sharedDatastore(c datastore.Config) joinwire.Datastore {
	switch {
	case c.Endpoint != "":
		return joinwire.External
	case datastore.Clustered(c):
		return joinwire.Etcd
	}
	return ""
}

// snapshotKeeper makes the snapshots of the datastore that source returns.
func (c Config) snapshotKeeper(source func() snapshot.Source, log *slog.Logger) *backup.Keeper {
	return &backup.Keeper{Config: c.Snapshots, Dirs: c.Dirs(), Node: c.NodeName, Source: source, Log: log.With("component", "snapshots")}
}

// Join makes this machine another server of a cluster, if cfg wants it to be one and it is not yet; see cluster.Join. addrs
// are the machine's, and ClaimName has settled its name.
func Join(ctx context.Context, cfg Config, addrs *nodeip.Tracker, log *slog.Logger) ([]etcd.Member, error) {
	now, _ := addrs.Now()
	advertise, err := advertiseAddress(cfg, now.IPs)
	if err != nil && cfg.Server != "" {
		return nil, fmt.Errorf("join the cluster of %s: %w", cfg.Server, err)
	}
	tok, err := cfg.joinToken()
	if err != nil {
		return nil, err
	}
	return cluster.Join(ctx, cluster.JoinConfig{
		Server: cfg.Server, Token: tok, Dirs: cfg.Dirs(), Datastore: cfg.datastoreConfig(advertise, log), Settings: cfg.shared(), Log: log,
	})
}

// joinToken returns the token that is set, zero if none is.
func (c Config) joinToken() (token.Token, error) {
	text, err := token.FromSettings(c.Token, c.TokenFile)
	if err != nil {
		return token.Token{}, fmt.Errorf("token-file: %w", err)
	}
	if text == "" {
		return token.Token{}, nil
	}
	t, err := token.Parse(text)
	if err != nil {
		return token.Token{}, fmt.Errorf("token: %w", err)
	}
	return t, nil
}

// shared returns the settings that all servers must have alike: what nodes get, what several servers write into the same
// objects, and what is deployed.
func (c Config) shared() []joinwire.Setting {
	list := func(l []string) string { return strings.Join(l, ",") }
	set := func(l []string) string {
		l = slices.Clone(l)
		slices.Sort(l)
		return list(slices.Compact(l))
	}
	out := []joinwire.Setting{
		{Key: "cluster-cidr", Value: list(config.Texts(c.ClusterCIDR))},
		{Key: "service-cidr", Value: list(config.Texts(c.ServiceCIDR))},
		{Key: "service-node-port-range", Value: c.NodePorts.String()},
		{Key: "cluster-dns", Value: list(config.Texts(c.DNS()))},
		{Key: "cluster-domain", Value: c.ClusterDomain},
		{Key: "flannel-backend", Value: c.FlannelBackend},
		{Key: "load-balancer-pool", Value: set(config.Texts(c.LoadBalancers))},
		{Key: "disable", Value: set(c.Disable)},
		{Key: "https-listen-port", Value: c.HTTPSPort.String()},
	}
	if len(c.ExternalIPs) > 0 { // older releases do not know it
		out = append(out, joinwire.Setting{Key: "service-external-ips", Value: set(config.Texts(c.ExternalIPs))})
	}
	return out
}
