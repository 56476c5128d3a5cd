// Package wellknown holds names in Kubernetes objects that server and agents share, and addresses that are the same
// on every node. It imports nothing of umiak; any package may use it.
package wellknown

import (
	"slices"
	"strings"
)

const (
	// LoadBalancerClass is the spec.loadBalancerClass of Services that umiak serves. It also serves Services without
	// one.
	LoadBalancerClass = "umiak.io/servicelb"
	// HostPorts is the annotation in which a node's agent lists the ports of load balancers that a program of the host
	// already uses, for instance 53/UDP,80/TCP.
	HostPorts = "umiak.io/host-ports"

	// ConfirmedAddresses is the annotation of a Node in which an administrator lists addresses that belong to the
	// node, for instance 192.0.2.1,2001:db8::1. A node cannot set it.
	ConfirmedAddresses = "umiak.io/confirmed-addresses"

	// SetLabels is the annotation in which a node records the labels that its Node has from its settings, as a JSON
	// object.
	SetLabels = "umiak.io/set-labels"

	// ServerRole is the label of the Nodes of servers, as in kubeadm and k3s.
	ServerRole = "node-role.kubernetes.io/control-plane"

	// DNSv4 is the IPv4 address of every node's DNS; DNSv6 is the IPv6 one. Link-local for IPv4, but not
	// 169.254.20.10, so that the node-local-dns add-on can still be installed. For IPv6 a unique local address
	// ("umiak" in hex): link-local ones carry an interface, and DNAT cannot.
	DNSv4 = "169.254.53.53"
	// DNSv6 is the same for IPv6; see DNSv4.
	DNSv6 = "fd75:6d69:616b::53"
	// DNSEndpointPort is the port of a node's addresses at which its DNS answers its own pods where another proxy than
	// the node's serves Services: the DNS Service has these endpoints then (server/dnsendpoints).
	DNSEndpointPort = 225

	// AdminsGroup is the group of the user in the administrator's kubeconfig.
	AdminsGroup = "umiak:admins"
	// KubeletClientUser is the API server towards kubelets.
	KubeletClientUser = "umiak:kubelet-client"
	// FrontProxyUser is the API server towards aggregated ones.
	FrontProxyUser = "umiak:front-proxy"

	// AgentsGroup is the group of the proxy, DNS and overlay of a node.
	AgentsGroup = "umiak:agents"
	// AgentUserPrefix is the prefix of their user name, before the name of the node.
	AgentUserPrefix = "umiak:agent:"
	// NodesGroup is the group of kubelets, defined by Kubernetes.
	NodesGroup = "system:nodes"
	// NodeUserPrefix is the prefix of the user name of a kubelet, before the name of the node.
	NodeUserPrefix = "system:node:"
)

// MachineOf returns the node whose kubelet or agent has a certificate with this common name and these organizations,
// and whether there is one.
func MachineOf(commonName string, organizations []string) (node string, ok bool) {
	if node, ok = strings.CutPrefix(commonName, NodeUserPrefix); ok && node != "" &&
		slices.Contains(organizations, NodesGroup) {
		return node, true
	}
	return AgentOf(commonName, organizations)
}

// AgentOf returns the node whose agent has a certificate with this common name and these organizations, and whether
// there is one.
func AgentOf(commonName string, organizations []string) (node string, ok bool) {
	node, ok = strings.CutPrefix(commonName, AgentUserPrefix)
	return node, ok && node != "" && slices.Contains(organizations, AgentsGroup)
}
