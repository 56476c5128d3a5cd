// Package agent is one node: containerd, kubelet, overlay network, service proxy and DNS in one process.
//
// New makes what a machine has before it joins a cluster; the part "join" makes the node, with the parts that need the
// cluster. Parts lists all of them in start order. Each package below owns one part; they are put together here. The
// agent never imports server/ or datastore/: what it needs from the cluster comes through a Joiner, which is the server
// itself on the server's own node and agent/join elsewhere (agent/worker).
package agent
