// Package systemports lists the ports on a node's own addresses that are reserved for the system: no Service gets them
// there, whether or not anything listens at present. Server and agent use it. It imports nothing of umiak.
package systemports

import corev1 "k8s.io/api/core/v1"

// Ports are the ports that settings can change; zero means the default.
type Ports struct{ API, Kubelet int }

// Defaults, and ports that no setting changes.
const (
	defaultAPI, defaultKubelet = 6443, 10250
	etcdClients, etcdPeers     = 2379, 2380
	imageSharing               = 5001
	vxlan                      = 8472
	wireguard, wireguard6      = 51820, 51821
)

// Node describes a node by what determines the ports that it needs.
type Node struct {
	// Server is true for the node of a server.
	Server bool
	// API is the port at which the node reaches the API: that of the API server on a server, that of the local load
	// balancer elsewhere. Kubelet is the kubelet's port.
	API, Kubelet int
	// Sharing means that the node serves images to others, VXLAN or WireGuard that the overlay network is of that kind.
	Sharing, VXLAN, WireGuard bool
	// Metrics are the TCP ports for metrics that settings switch on, each with its holder. Holder does not have them:
	// the service proxy takes no port from a socket that listens.
	Metrics []Held
}

// Held is a reserved port and its holder.
type Held struct {
	Protocol corev1.Protocol
	Port     int
	Holder   string
}

// Held returns the ports that no pod may claim with hostPort, since their traffic would go to the pod instead of the
// system.
func (n Node) Held() []Held {
	out := []Held{{corev1.ProtocolTCP, n.Kubelet, "the kubelet"}}
	add := func(proto corev1.Protocol, holder string, ports ...int) {
		for _, p := range ports {
			out = append(out, Held{proto, p, holder})
		}
	}
	if n.Server {
		add(corev1.ProtocolTCP, "the API server", n.API)
		add(corev1.ProtocolTCP, "etcd", etcdClients, etcdPeers)
	} else {
		add(corev1.ProtocolTCP, "the node's way to the servers", n.API)
	}
	if n.Sharing {
		add(corev1.ProtocolTCP, "image sharing", imageSharing)
	}
	if n.VXLAN {
		add(corev1.ProtocolUDP, "the pods' network", vxlan)
	}
	if n.WireGuard {
		add(corev1.ProtocolUDP, "the pods' network", wireguard, wireguard6)
	}
	return append(out, n.Metrics...)
}

// Holder returns the holder of a port, for instance "the kubelet"; empty if the port is free.
func (p Ports) Holder(proto corev1.Protocol, port int) string {
	if p.API == 0 {
		p.API = defaultAPI
	}
	if p.Kubelet == 0 {
		p.Kubelet = defaultKubelet
	}
	switch proto {
	case corev1.ProtocolTCP, "":
		switch port {
		case p.API:
			return "the API server"
		case p.Kubelet:
			return "the kubelet"
		case etcdClients, etcdPeers:
			return "etcd"
		case imageSharing:
			return "image sharing"
		}
	case corev1.ProtocolUDP:
		switch port {
		case vxlan, wireguard, wireguard6:
			return "the pods' network"
		}
	}
	return ""
}
