package apiservers

import (
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestOf(t *testing.T) {
	https, other, port := "https", "metrics", int32(6443)
	got := Of([]discoveryv1.EndpointSlice{
		{Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}, {Name: &other, Port: new(int32)}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"10.0.0.1"}}}},
		{Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"fd00::1"}}, {Addresses: []string{"10.0.0.1"}}}},
	})
	if want := []string{"10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:6443"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
