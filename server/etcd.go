package server

import (
	"net"
	"path/filepath"
	"strconv"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/server/pki"
)

// EtcdPort is where members of an embedded etcd reach each other.
const EtcdPort = 2380

// JoinEtcd has this server start as a member of a cluster that has taken it in: the answer of
// datastore.Cluster's AddLearner, asked for EtcdName and EtcdPeer. Call it before the parts run. It counts
// only while the server has no state of its own.
func (s *Server) JoinEtcd(members []etcd.Member) { s.joined = members }

// EtcdPeer is the address at which other members reach this one.
func (s *Server) EtcdPeer() string { return net.JoinHostPort(s.advertise, strconv.Itoa(EtcdPort)) }

// EtcdName is this server's name among the members: that of its node.
func (s *Server) EtcdName() string {
	name, err := agent.Config{NodeName: s.cfg.NodeName}.Name()
	if err != nil {
		return "" // New has refused it
	}
	return name
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
		Name: s.EtcdName(), Peer: s.EtcdPeer(), Listen: net.JoinHostPort(s.bindForEtcd(), strconv.Itoa(EtcdPort)),
		Cluster: "umiak", Join: s.joined, Reset: s.cfg.ClusterReset,
		TLS: etcd.TLS{CA: p(string(pki.EtcdCA) + ".crt"), ServerCert: p("etcd-peer.crt"), ServerKey: p("etcd-peer.key"), ClientCert: p("etcd-peer-client.crt"), ClientKey: p("etcd-peer-client.key")},
	}
}

// bindForEtcd is where to listen for members: where the API server listens, as far as that takes what
// comes for the advertised address.
func (s *Server) bindForEtcd() string {
	if s.bind == "" {
		return s.advertise
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
