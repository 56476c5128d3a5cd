package network

import (
	"context"
	"log/slog"
	"net/netip"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/network/hostport"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
)

// Config describes the pod network of one node.
type Config struct {
	NodeName string
	NodeIPs  []netip.Addr
	Iface    string // for traffic between nodes; empty: the one with the node's address
	// Flannel changes the backend.
	Flannel FlannelConf
	// CNI changes the configuration by which pods get their interfaces.
	CNI CNIConf
	// ExternalIPs are the addresses at which other nodes send to this node's pods, instead of those of Iface, which
	// remain in a family without one.
	ExternalIPs []netip.Addr
	Backend     string // VXLAN, HostGW, WireGuard or None
	ClusterCIDR []netip.Prefix
	ServiceCIDR []netip.Prefix
	// SourceCheck drops packets of pods with others than their own addresses.
	SourceCheck bool
	// PolicySocket is where the CNI plugin announces pods to agent/dataplane/netpol; "" where no policies are enforced.
	PolicySocket string
	// ServiceRoutes means that the host has routes to the addresses of Services, see agent/dataplane/serviceroute.
	ServiceRoutes bool
	// Held are ports of the node that no pod gets by hostPort.
	Held []hostport.Held
	Dirs layout.Dirs
	// Watch reads all Nodes (the agent's identity); Self changes this node's own (the kubelet's).
	Watch, Self kubernetes.Interface
	// KubeletPort is closed to others than nodes, servers, pods and the ranges KubeletFrom; 0 is not closed. With a
	// network of the user's it is closed only if there are ranges.
	KubeletPort int
	KubeletFrom []netip.Prefix
	// Servers are API servers besides those that are nodes; nil is none.
	Servers Servers
	// Tables writes the tables umiak-network and umiak-peers and restores them.
	Tables Tables
	// Others receives the nodes as well; may be nil.
	Others  Observer
	Journal *host.Journal
	Log     *slog.Logger
}

// Tables writes nftables tables and restores them: a *reconcile.Tables.
type Tables interface {
	Set(ctx context.Context, want ruleset.Table) error
	Remove(ctx context.Context, name string) error
}

// Observer follows the nodes, this one too, by the one watch of all nodes that an agent has.
type Observer interface {
	// Keep copies what the observer needs of a node to one that is kept in memory and has its addresses already. It may
	// be given what it has made before.
	Keep(from, to *v1.Node)
	// Set takes a node as Keep has made it.
	Set(n *v1.Node)
	Remove(name string)
}
