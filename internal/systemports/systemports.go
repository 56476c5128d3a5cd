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
