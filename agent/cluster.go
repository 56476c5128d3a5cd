package agent

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/systemports"
)

// Cluster describes the cluster to a node that joins it.
type Cluster = joinwire.Cluster

// Node describes a node to the cluster that it joins.
type Node = joinwire.Node

// Joiner gives a node its identity. Join writes into the node's directories (see internal/layout)
//
//	AgentPKI()/server-ca.crt, client-ca.crt              whom the node trusts
//	AgentPKI()/kubelet-client.{crt,key}                  as system:node:NAME, group system:nodes
//	AgentPKI()/kubelet-serving.{crt,key}                 for the kubelet's port
//	AgentPKI()/agent-client.{crt,key}                    as umiak:agent:NAME, group umiak:agents
//	KubeletKubeconfig(), AgentKubeconfig()               which name those files
//
// and returns once the API server answers. The files may be replaced later, when certificates are
// renewed; their readers follow. Join may be called again and changes nothing then.
//
// A Joiner may implement the interfaces below as well.
type Joiner interface {
	Join(ctx context.Context, node Node) (*Cluster, error)
}

// Servers is implemented by a Joiner whose cluster has servers on other machines. The node keeps a tunnel to each.
type Servers interface {
	// Servers returns those servers as HOST:PORT, and a channel that is closed when the list changes.
	Servers() (list []string, changed <-chan struct{})
	// Authorities makes sure that the node has the authorities with a hash of tunnelwire.HashAuthorities, which one of
	// those servers asks for. It returns the hash of those that the node has, and since when.
	Authorities(ctx context.Context, hash string) (has string, since time.Time, err error)
}

// Facts is implemented by a Joiner on another machine than the server: it follows what the cluster says of itself while
// the node runs.
type Facts interface {
	// Facts returns what the cluster has said last, and a channel that is closed when that changes.
	Facts() (c Cluster, changed <-chan struct{})
}

// Backend is implemented by a Joiner that may know the cluster's network before the node joins: at each start but the
// first one of an agent.
type Backend interface {
	// FlannelBackend returns the cluster's, empty while it is not known.
	FlannelBackend() string
}

// LocalServer is implemented by a Joiner whose server runs on this machine.
type LocalServer interface {
	// LocalServer returns the HOST:PORT of that server if programs of this machine need it at lb-server-port, as they
	// find a server on other nodes; "" if not.
	LocalServer() string
	// MetricsPorts returns the ports for metrics that the server's settings switch on, which no pod gets by hostPort.
	MetricsPorts() []systemports.Held
}

// Earlier is implemented by a Joiner that knows with which addresses the node joined last.
type Earlier interface {
	// EarlierIPs returns those addresses, nil if the node has not joined.
	EarlierIPs() []string
}

// Taints is implemented by a Joiner that sets the taints of the node's settings: a node may not change those of its own
// Node.
type Taints interface {
	// SetTaints gives the Node these taints and removes those that it gave it earlier; others stay.
	SetTaints(ctx context.Context, node string, taints []corev1.Taint) error
}
