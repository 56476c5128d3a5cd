package servicelb

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/systemports"
)

// Name is the name by which --disable leaves out load balancers.
const Name = "servicelb"

// ReservedPorts returns Planner.Reserved for nodes with these node ports and this port of the API server. A port is
// reserved whether or not something listens on it right now.
func ReservedPorts(nodePorts config.PortRange, api int) func(port int32, proto corev1.Protocol) string {
	return func(port int32, proto corev1.Protocol) string {
		if nodePorts.Contains(int(port)) {
			return "node ports (service-node-port-range)"
		}
		return systemports.Ports{API: api}.Holder(proto, int(port))
	}
}
