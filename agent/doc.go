// Package agent is one node: containerd, kubelet, overlay network, service proxy and DNS in one process.
//
// New assembles the node's parts, in start order, from the packages below it; each of those owns one
// piece and knows nothing of the others. The agent never imports server/ or datastore/: what it needs
// from the cluster comes through a Joiner, which is the server itself on the server's own node.
package agent
