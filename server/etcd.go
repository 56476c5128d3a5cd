package server

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/server/pki"
)

// EtcdPort is where members of an embedded etcd reach each other.
const EtcdPort = 2380

// WithEtcdMembers has the server start as a member of a cluster that has taken it in: the answer of
// datastore.Cluster's AddLearner, asked there for what EtcdSelf says. It counts only while the server has no
// state of its own.
func WithEtcdMembers(members []etcd.Member) Option {
	return func(o *options) { o.members = members }
}

// EtcdSelf is the name and the address that a server of this configuration has among the members.
func EtcdSelf(cfg Config, log *slog.Logger) (name, peer string, err error) {
	n, err := cfg.nodeName().Find()
	if err != nil {
		return "", "", err
	}
	t, err := Addresses(context.Background(), cfg, log)
	if err != nil {
		return "", "", err
	}
	now, _ := t.Now()
	a, err := advertiseAddress(cfg, now.IPs)
	return n.Name, etcdPeer(a), err
}

func etcdPeer(advertise string) string {
	return net.JoinHostPort(advertise, strconv.Itoa(EtcdPort))
}

func (s *Server) etcdName() string {
	return s.cfg.NodeName // New has claimed it
}

// EtcdCluster is the cluster that this server is a member of, nil while the datastore is not open or where
// it is something else.
func (s *Server) EtcdCluster() datastore.Cluster {
	c, _ := s.datastore().(datastore.Cluster)
	return c
}

func (s *Server) etcdConfig() etcd.Config {
	p := func(name string) string { return filepath.Join(s.dirs.ServerPKI(), name) }
	return etcd.Config{
		Name: s.etcdName(), Peer: etcdPeer(s.advertise()), Listen: net.JoinHostPort(s.bindForEtcd(), strconv.Itoa(EtcdPort)),
		Cluster: "umiak", Join: s.members, Reset: s.cfg.ClusterReset,
		TLS: etcd.TLS{CA: p(string(pki.EtcdCA) + ".crt"), ServerCert: p("etcd-peer.crt"), ServerKey: p("etcd-peer.key"), ClientCert: p("etcd-peer-client.crt"), ClientKey: p("etcd-peer-client.key")},
	}
}

// bindForEtcd is where to listen for members: where the API server listens, as far as that takes what
// comes for the advertised address.
func (s *Server) bindForEtcd() string {
	if s.bind == "" {
		return s.advertise()
	}
	return s.bind
}

// etcdLeaves are the certificates with which members prove themselves to each other. What is verified is
// the name, so addresses may change.
func (s *Server) etcdLeaves() []pki.Leaf {
	if !datastore.Clustered(s.datastoreConfig()) {
		return nil
	}
	c := s.etcdConfig().TLS
	return []pki.Leaf{
		{Name: "etcd-peer", CA: pki.EtcdCA, CertFile: c.ServerCert, KeyFile: c.ServerKey, CommonName: "umiak:etcd", Server: true, DNSNames: []string{etcd.PeerName}},
		{Name: "etcd-peer-client", CA: pki.EtcdCA, CertFile: c.ClientCert, KeyFile: c.ClientKey, CommonName: "umiak:etcd"},
	}
}
