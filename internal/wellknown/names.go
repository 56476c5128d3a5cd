// Package wellknown holds the names in Kubernetes objects by which server and agents understand each other, and addresses
// that are the same on every node.
package wellknown

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

	// ConfirmedAddresses is the annotation of a Node with which an administrator says that these addresses are the node's:
	// 192.0.2.1,2001:db8::1. A node cannot set it.
	ConfirmedAddresses = "umiak.io/confirmed-addresses"

	// SetLabels is the annotation in which a node records the labels that its settings have given its Node, as a JSON object.
	SetLabels = "umiak.io/set-labels"

	// ServerRole is the label of servers' Nodes, as kubeadm and k3s have it.
	ServerRole = "node-role.kubernetes.io/control-plane"

	// DNSv4 is the IPv4 address of every node's DNS; DNSv6 is the IPv6 one. Link-local for IPv4, but not 169.254.20.10, so that the
	// node-local-dns add-on can still be installed. For IPv6 a unique local address ("umiak" in hex): link-local ones
	// carry an interface, and DNAT cannot.
	DNSv4 = "169.254.53.53"
	// DNSv6 is the same for IPv6; see DNSv4.
	DNSv6 = "fd75:6d69:616b::53"

	// AdminsGroup is the group of the administrator's kubeconfig.
	AdminsGroup = "umiak:admins"
	// AgentsGroup is the group of the proxy, DNS and overlay of a node.
	AgentsGroup = "umiak:agents"
	// AgentUserPrefix is what stands before the node's name in their user's.
	AgentUserPrefix = "umiak:agent:"
	// NodesGroup is the group of kubelets, as upstream has it.
	NodesGroup = "system:nodes"
	// NodeUserPrefix is what stands before the node's name in a kubelet's user's.
	NodeUserPrefix = "system:node:"
)

// MachineOf is the node whose kubelet or agent has a certificate with this common name and these organizations.
func MachineOf(commonName string, organizations []string) (node string, ok bool) {
	if node, ok = strings.CutPrefix(commonName, NodeUserPrefix); ok && node != "" && slices.Contains(organizations, NodesGroup) {
		return node, true
	}
	return AgentOf(commonName, organizations)
}

// AgentOf is the node whose agent has a certificate with this common name and these organizations, if it is an agent's.
func AgentOf(commonName string, organizations []string) (node string, ok bool) {
	node, ok = strings.CutPrefix(commonName, AgentUserPrefix)
	return node, ok && node != "" && slices.Contains(organizations, AgentsGroup)
}
