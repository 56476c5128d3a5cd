// Package names holds the names in Kubernetes objects by which server and agents understand each other.
package names

import (
	"slices"
	"strings"
)

const (
	// LoadBalancerClass is the spec.loadBalancerClass of Services that umiak serves, besides none.
	LoadBalancerClass = "umiak.io/servicelb"
	// HostPorts is the annotation with which a node's agent says which of the ports that load balancers
	// want are held by a program of the host: 53/UDP,80/TCP.
	HostPorts = "umiak.io/host-ports"

	// ServerRole is the label of servers' Nodes, as kubeadm and k3s have it.
	ServerRole = "node-role.kubernetes.io/control-plane"

	// AgentsGroup is the group of the proxy, DNS and overlay of a node.
	AgentsGroup = "umiak:agents"
	// AgentUserPrefix is what stands before the node's name in their user's.
	AgentUserPrefix = "umiak:agent:"
	// NodesGroup is the group of kubelets, as upstream has it.
	NodesGroup = "system:nodes"
	// NodeUserPrefix is what stands before the node's name in a kubelet's user's.
	NodeUserPrefix = "system:node:"
)

// AgentOf is the node whose agent has a certificate with this common name and these organizations, if it is an agent's.
func AgentOf(commonName string, organizations []string) (node string, ok bool) {
	node, ok = strings.CutPrefix(commonName, AgentUserPrefix)
	return node, ok && node != "" && slices.Contains(organizations, AgentsGroup)
}
