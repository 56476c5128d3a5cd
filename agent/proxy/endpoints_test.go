package proxy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

func testSlice(service, name int, addrs ...string) *discovery.EndpointSlice {
	yes, tcp, port := true, v1.ProtocolTCP, int32(80)
	portName := "p"
	s := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s%d-%d", service, name),
			Labels: map[string]string{discovery.LabelServiceName: fmt.Sprintf("s%d", service)}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{a}, Conditions: discovery.EndpointConditions{Ready: &yes}})
	}
	return s
}

// TestEndpointTracker compares it with one tracker of kube-proxy's that is told the same.
func TestEndpointTracker(t *testing.T) {
	ours, one := newEndpointTracker(v1.IPv4Protocol, "n"), kubeproxy.NewEndpointsChangeTracker(v1.IPv4Protocol, "n", nil, nil)
	have, want := kubeproxy.EndpointsMap{}, kubeproxy.EndpointsMap{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		for range rnd.IntN(20) {
			s := testSlice(rnd.IntN(600), rnd.IntN(2), fmt.Sprintf("10.0.0.%d", rnd.IntN(250)), fmt.Sprintf("10.0.1.%d", rnd.IntN(250)))
			gone := rnd.IntN(3) == 0
			if a, b := ours.note(s, gone), one.EndpointSliceUpdate(s, gone); a != b {
				t.Fatalf("round %d: noted %v, want %v", round, a, b)
			}
		}
		a, b := ours.update(have), want.Update(one)
		if len(a.UpdatedServices) != len(b.UpdatedServices) || !a.UpdatedServices.Equal(b.UpdatedServices) {
			t.Fatalf("round %d: updated %v, want %v", round, a.UpdatedServices, b.UpdatedServices)
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
				t.note(testSlice(i, 0, "10.0.0.1"), false)
			}
			t.update(eps)
			b.ResetTimer()
			for i := range b.N {
				t.note(testSlice(1, 0, fmt.Sprintf("10.0.0.%d", i%250)), false)
				t.update(eps)
			}
		})
	}
}
