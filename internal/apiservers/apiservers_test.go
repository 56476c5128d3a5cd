package apiservers

import (
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestOf(t *testing.T) {
	https, other, port := "https", "metrics", int32(6443)
	published, foreign := metav1.ObjectMeta{Name: "kubernetes"}, metav1.ObjectMeta{Name: "kubernetes-x7d2k"}
	got := Of([]discoveryv1.EndpointSlice{
		{ObjectMeta: published, Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port},
			{Name: &other, Port: new(int32)}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.2"}}, {Addresses: []string{"fd00::1"}},
				{Addresses: []string{"10.0.0.1"}}}},
		{ObjectMeta: foreign, Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.9"}}}},
	})
	if want := []string{"10.0.0.1:6443", "10.0.0.2:6443", "[fd00::1]:6443"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
