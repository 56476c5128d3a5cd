package ownnode

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// Config describes the node of this server.
type Config struct {
	Dirs layout.Dirs
	// Name is the node's.
	Name string
	// URL is where this machine reaches its API server.
	URL       string
	Addresses *nodeip.Tracker
	// Facts are the settings of the cluster for every node.
	Facts joinwire.Cluster
	// MetricsPorts are this server's ports for metrics that settings switch on.
	MetricsPorts []systemports.Held
	PKI          *pki.PKI
	// WaitReady returns when the API server answers.
	WaitReady func(context.Context) error
	Access    joinapi.Access
	Clients   kubeclient.Source
	Log       *slog.Logger
}

// Node is this server's node, as the agent's Joiner.
type Node struct {
	cfg    Config
	joined chan agent.Node // as which the agent has joined
}

var (
	_ agent.Joiner      = (*Node)(nil)
	_ agent.Backend     = (*Node)(nil)
	_ agent.LocalServer = (*Node)(nil)
	_ agent.Taints      = (*Node)(nil)
	_ agent.Servers     = WithPeers{}
)

// New returns the node of a server.
func New(cfg Config) *Node { return &Node{cfg: cfg, joined: make(chan agent.Node, 1)} }

// FlannelBackend returns the setting, for a node that has not joined yet.
func (n *Node) FlannelBackend() string { return n.cfg.Facts.FlannelBackend }

// LocalServer returns this server's address where no proxy of the node serves the Service kubernetes: another proxy has
// to reach the API at an address that is the same on all nodes.
func (n *Node) LocalServer() string {
	if !n.cfg.Facts.KubeProxyOff {
		return ""
	}
	return strings.TrimPrefix(n.cfg.URL, "https://")
}

// MetricsPorts returns the server's ports for metrics that settings switch on, see agent.LocalServer.
func (n *Node) MetricsPorts() []systemports.Held { return n.cfg.MetricsPorts }

// Addresses returns the node's addresses, which the server has found already.
func (n *Node) Addresses() *nodeip.Tracker { return n.cfg.Addresses }

// Join issues the node's certificates, which are renewed from then on, and returns when the API server answers.
func (n *Node) Join(ctx context.Context, node agent.Node) (*agent.Cluster, error) {
	local := pki.LocalNode{Dirs: n.cfg.Dirs, URL: n.cfg.URL, Name: node.Name,
		IPs: slices.Concat(node.IPs, node.ExternalIPs), DNSNames: node.DNSNames}
	if err := local.Add(n.cfg.PKI); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	if err := n.cfg.WaitReady(ctx); err != nil {
		return nil, fmt.Errorf("join node %s: %w", node.Name, err)
	}
	select {
	case n.joined <- node:
	default: // Reserve has it already
	}
	facts := n.cfg.Facts
	facts.APIServer = n.cfg.URL
	return &facts, nil
}

// SetTaints gives the server's own Node the taints of its settings, see agent.Taints.
func (n *Node) SetTaints(ctx context.Context, node string, taints []corev1.Taint) error {
	tokens, err := n.cfg.Access.Tokens()
	if err != nil {
		return err
	}
	return tokens.SetTaints(ctx, node, taints)
}

// Reserve takes the node's name, so that no machine that joins with a token gets it. It runs until ctx ends; the node
// does not wait for it.
func (n *Node) Reserve(ctx context.Context, ready func()) error {
	var node agent.Node
	select {
	case node = <-n.joined:
		select {
		case n.joined <- node: // for another run
		default: // the agent has joined again meanwhile
		}
	case <-ctx.Done():
		return nil
	}
	password, err := token.SecretFile(n.cfg.Dirs.NodePassword())
	if err != nil {
		return err
	}
	now, _ := n.cfg.Addresses.Now()
	taken, err := n.cfg.Access.Reserve(ctx, node.Name, password, now.IPs, node.DNSNames...)
	if err != nil {
		return err
	}
	if taken {
		n.cfg.Log.Warn("this server's node name was kept for another machine, and is this server's now; if that machine runs, "+
			"give it another node-name", "node", node.Name)
	}
	ready()
	<-ctx.Done()
	return nil
}

// WithPeers is the node of a server that may have others beside it: it maintains tunnels to them.
type WithPeers struct {
	*Node
	Cluster *cluster.Cluster
}

// Servers returns the other servers.
func (n WithPeers) Servers() (list []string, changed <-chan struct{}) { return n.Cluster.Peers.List() }

// Authorities returns the authorities that this server keeps in the node's files.
func (n WithPeers) Authorities(context.Context, string) (has string, since time.Time, err error) {
	return n.Cluster.Authorities.Hash(), n.Cluster.Authorities.Started(), nil
}
