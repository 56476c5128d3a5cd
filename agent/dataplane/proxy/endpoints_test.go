package proxy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	v1 "k8s.io/api/core/v1"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

// TestEndpointTracker compares it with one tracker of kube-proxy's that is told the same.
func TestEndpointTracker(t *testing.T) {
	ours, one := newEndpointTracker(v1.IPv4Protocol, "n"), kubeproxy.NewEndpointsChangeTracker(v1.IPv4Protocol, "n",
		nil, nil)
	have, want := kubeproxy.EndpointsMap{}, kubeproxy.EndpointsMap{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		for range rnd.IntN(20) {
			s := slice(fmt.Sprintf("s%d", rnd.IntN(600)), v1.ProtocolTCP, fmt.Sprintf("10.0.0.%d", rnd.IntN(250)),
				fmt.Sprintf("10.0.1.%d", rnd.IntN(250)))
			s.Name += fmt.Sprint(rnd.IntN(2)) // a Service may have several
			gone := rnd.IntN(3) == 0
			if a, b := ours.observe(s, gone), one.EndpointSliceUpdate(s, gone); a != b {
				t.Fatalf("round %d: noted %v, want %v", round, a, b)
			}
		}
		services, changed := ours.update(have)
		b := want.Update(one)
		if !services.Equal(b.UpdatedServices) {
			t.Fatalf("round %d: updated %v, want %v", round, services, b.UpdatedServices)
		}
		if !reflect.DeepEqual(changed, b.LastChangeTriggerTimes) {
			t.Fatalf("round %d: changed at %v, want %v", round, changed, b.LastChangeTriggerTimes)
		}
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("round %d: endpoints differ", round)
		}
	}
}

// BenchmarkEndpointTracker is one change with many Services there.
func BenchmarkEndpointTracker(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			t, eps := newEndpointTracker(v1.IPv4Protocol, "n"), kubeproxy.EndpointsMap{}
			for i := range n {
				t.observe(slice(fmt.Sprintf("s%d", i), v1.ProtocolTCP, "10.0.0.1"), false)
			}
			t.update(eps)
			b.ResetTimer()
			for i := range b.N {
				t.observe(slice("s1", v1.ProtocolTCP, fmt.Sprintf("10.0.0.%d", i%250)), false)
				t.update(eps)
			}
		})
	}
}
