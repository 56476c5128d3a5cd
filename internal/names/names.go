// Package names holds the names in Kubernetes objects by which server and agents understand each other.
package names

const (
	// LoadBalancerClass is the spec.loadBalancerClass of Services that umiak serves, besides none.
	LoadBalancerClass = "umiak.io/servicelb"
	// HostPorts is the annotation with which a node's agent says which of the ports that load balancers
	// want are held by a program of the host: 53/UDP,80/TCP.
	HostPorts = "umiak.io/host-ports"

	// AgentsGroup and AgentUserPrefix are who the proxy, DNS and overlay of a node are.
	AgentsGroup     = "umiak:agents"
	AgentUserPrefix = "umiak:agent:"
	// NodesGroup and NodeUserPrefix are who upstream's kubelets are.
	NodesGroup     = "system:nodes"
	NodeUserPrefix = "system:node:"
)
