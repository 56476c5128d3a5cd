package systemports

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestHeld checks that ports reserved against pods are reserved against Services too. The load balancer at 127.0.0.1
// is an exception: no Service has that address.
func TestHeld(t *testing.T) {
	server := Node{Server: true, API: 7443, Kubelet: 10260, Sharing: true, VXLAN: true, WireGuard: true}
	for _, h := range server.Held() {
		if (Ports{API: 7443, Kubelet: 10260}).Holder(h.Protocol, h.Port) != h.Holder {
			t.Errorf("%+v is not reserved against Services", h)
		}
	}
	agent := Node{API: 6444, Kubelet: 10250}.Held()
	has := func(port int) bool {
		return slices.ContainsFunc(agent, func(h Held) bool {
			return h.Protocol == corev1.ProtocolTCP && h.Port == port
		})
	}
	withMetrics := Node{API: 6444, Kubelet: 10250, Metrics: []Held{{corev1.ProtocolTCP, 10249, "metrics"}}}
	if got := withMetrics.Held(); len(got) != 3 || got[2] != withMetrics.Metrics[0] {
		t.Errorf("an agent with a port for metrics reserves %+v", got)
	}
	if !has(6444) || !has(10250) || len(agent) != 2 {
		t.Errorf("an agent without image sharing, with host-gw, reserves %+v", agent)
	}
}
