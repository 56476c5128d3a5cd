// Package systemports names the ports of a node's own addresses that belong to the system: no Service gets them there,
// whether or not anything listens right now. Server and agent share it.
package systemports

import corev1 "k8s.io/api/core/v1"

// Ports are those that settings move; zero means the default.
type Ports struct{ API, Kubelet int }

// The defaults, and what no setting moves.
const (
	defaultAPI, defaultKubelet = 6443, 10250
	etcdClients, etcdPeers     = 2379, 2380
	imageSharing               = 5001
	vxlan                      = 8472
	wireguard, wireguard6      = 51820, 51821
)

// Node is what decides which ports of its own a node needs.
type Node struct {
	// Server says that this is a server's own node.
	Server bool
	// API is the port at which the node reaches the API: the API server's own on a server, the local balancer's elsewhere.
	API, Kubelet int
	// Sharing says that the node gives images to others, VXLAN and WireGuard that the pods' network is one of these.
	Sharing, VXLAN, WireGuard bool
}

// Held is a port with what it belongs to.
type Held struct {
	Protocol corev1.Protocol
	Port     int
	Holder   string
}

// Held returns the ports that no pod gets by hostPort: what comes there would go to the pod, and not to the system.
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
	return out
}

// Holder says what a port belongs to, as "the kubelet"; empty if it is free.
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
