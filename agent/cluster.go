package agent

import (
	"context"
	"time"

	"github.com/umiak-io/umiak/internal/joinwire"
)

// Cluster is what a node learns from the cluster when it joins.
type Cluster = joinwire.Cluster

// Node is what a node says of itself when it joins.
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
type Joiner interface {
	Join(ctx context.Context, node Node) (*Cluster, error)
}

// Servers is what a Joiner also is when there are servers on other machines. This node keeps a tunnel to each
// of them.
type Servers interface {
	// Servers are those servers as HOST:PORT, and a channel that is closed when the list changes.
	Servers() (list []string, changed <-chan struct{})
	// Authorities makes sure that the node has the authorities with a hash of tunnelwire.HashAuthorities, as one of those
	// servers asks, and says which it has and since when.
	Authorities(ctx context.Context, hash string) (has string, since time.Time, err error)
}

// Facts is what a Joiner also is that hears, while the node runs, when the cluster says something else than at its joining.
type Facts interface {
	// Facts are what the cluster has said last, and a channel that is closed when that changes.
	Facts() (c Cluster, changed <-chan struct{})
}

// Backend is what a Joiner also is that may know the cluster's network before it has joined: at each start but the
// first one of an agent.
type Backend interface {
	// FlannelBackend is the cluster's, "" while it is not known.
	FlannelBackend() string
}

// Earlier is what a Joiner also is that knows with which addresses the node joined last.
type Earlier interface {
	// EarlierIPs are those addresses, nil if the node has not joined.
	EarlierIPs() []string
}
