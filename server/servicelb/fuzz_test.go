package servicelb

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// FuzzNodeOf: whatever a Node says, what is kept of it is bounded.
func FuzzNodeOf(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a","annotations":{"umiak.io/host-ports":"80/TCP, 53/UDP,x,0/TCP,70000/TCP,443"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"},{"type":"ExternalIP","address":"::ffff:192.0.2.7"},{"type":"ExternalIP","address":"x"}],"conditions":[{"type":"Ready","status":"True"}]}}`))
	f.Add([]byte(`{"metadata":{"labels":{"node.kubernetes.io/exclude-from-external-load-balancers":""},"deletionTimestamp":"2026-11-30T00:00:00Z","annotations":{"umiak.io/host-ports":",,,//TCP"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var o corev1.Node
		if json.Unmarshal(raw, &o) != nil {
			return
		}
		n := nodeOf(&o)
		if len(n.addrs) > maxAddresses || len(n.confirmed) > maxAddresses || len(n.held) > maxPorts {
			t.Fatalf("%d addresses, %d confirmed ones and %d ports are kept", len(n.addrs), len(n.confirmed),
				len(n.held))
		}
		for p := range n.held {
			if p.port < 1 || p.port > 65535 {
				t.Errorf("port %d is kept", p.port)
			}
		}
		for i, a := range n.addrs {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("address %d: %s", i, a)
			}
		}
	})
}
