package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/server/controlplane"
	"github.com/umiak-io/umiak/server/pki"
)

// Joiner gives the node on this machine its identity, from this server's own CAs. The server keeps the
// node's certificates fresh.
func (s *Server) Joiner() agent.Joiner { return localJoiner{s} }

type localJoiner struct{ s *Server }

var _ agent.Joiner = localJoiner{}

func (j localJoiner) Join(ctx context.Context, node agent.Node) (*agent.Cluster, error) {
	s := j.s
	if err := s.issueNode(node); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	if err := s.plane.APIServer.WaitReady(ctx); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	c := s.cfg
	return &agent.Cluster{
		APIServer:   s.loopbackURL(),
		ClusterCIDR: c.ClusterCIDR, ServiceCIDR: c.ServiceCIDR,
		ClusterDNS: c.DNS(), ClusterDomain: c.ClusterDomain,
		FlannelBackend: c.FlannelBackend, NodePorts: c.NodePorts,
	}, nil
}

// issueNode writes what agent/cluster.go says, and has it renewed.
func (s *Server) issueNode(node agent.Node) error {
	dir := s.dirs.AgentPKI()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	trusted := func(ca pki.CA) string { return filepath.Join(dir, string(ca)+".crt") }
	// Again with every leaf: a rotation changes both.
	trust := func() error {
		return errors.Join(pki.WriteIfChanged(trusted(pki.ServerCA), s.pki.CAPEM(pki.ServerCA), 0o644),
			pki.WriteIfChanged(trusted(pki.ClientCA), s.pki.CAPEM(pki.ClientCA), 0o644))
	}
	kubeconfig := func(l pki.Leaf, file string) func() error {
		k := s.kubeconfig(l)
		k.CAFile = trusted(pki.ServerCA)
		return func() error { return errors.Join(trust(), k.Write(file, 0o600)) }
	}
	leaf := func(name, user string, groups ...string) pki.Leaf {
		return pki.Leaf{
			Name: "node " + node.Name + " " + name, CA: pki.ClientCA,
			CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key"),
			CommonName: user, Organization: groups, Steady: true,
		}
	}
	kubelet := leaf("kubelet-client", "system:node:"+node.Name, "system:nodes")
	kubelet.Renewed = kubeconfig(kubelet, s.dirs.KubeletKubeconfig())
	own := leaf("agent-client", controlplane.AgentUserPrefix+node.Name, controlplane.AgentsGroup)
	own.Renewed = kubeconfig(own, s.dirs.AgentKubeconfig())
	serving := leaf("kubelet-serving", "system:node:"+node.Name, "system:nodes")
	serving.CA, serving.Server, serving.Steady = pki.ServerCA, true, false
	serving.DNSNames, serving.IPs = []string{node.Name}, append([]string{"127.0.0.1"}, node.IPs...)
	for _, l := range []pki.Leaf{kubelet, own, serving} {
		if err := s.pki.Add(l); err != nil {
			return err
		}
	}
	return nil
}
