package dnsendpoints

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/internal/wellknown"
)

const (
	namespace = metav1.NamespaceSystem
	service   = "kube-dns"
	// manager marks the EndpointSlices of this package.
	manager = "dns.umiak.io"
	// maxEndpoints is the API's limit for one EndpointSlice.
	maxEndpoints = 1000
)

// plan returns the EndpointSlices of the DNS Service: the first internal address of each node in each family that the
// Service has.
func plan(nodes []*corev1.Node, families []discoveryv1.AddressType) (out []discoveryv1.EndpointSlice) {
	nodes = slices.SortedFunc(slices.Values(nodes), func(a, b *corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, family := range families {
		var all []discoveryv1.Endpoint
		for _, n := range nodes {
			if a, ok := address(n, family); ok {
				all = append(all, endpoint(n.Name, a))
			}
		}
		i := 0
		for chunk := range slices.Chunk(all, maxEndpoints) {
			out = append(out, slice(family, i, chunk))
			i++
		}
	}
	return out
}

// address returns a node's first internal address of a family.
func address(n *corev1.Node, family discoveryv1.AddressType) (netip.Addr, bool) {
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if err != nil || a.Type != corev1.NodeInternalIP || !ip.IsGlobalUnicast() || ip.Zone() != "" {
			continue
		}
		if ip = ip.Unmap(); ip.Is4() == (family == discoveryv1.AddressTypeIPv4) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

func endpoint(node string, a netip.Addr) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{
		Addresses: []string{a.String()}, NodeName: &node,
		// A node that is not ready still answers its own pods.
		Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
	}
}

func slice(family discoveryv1.AddressType, index int, endpoints []discoveryv1.Endpoint) discoveryv1.EndpointSlice {
	port := func(name string, p corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: new(int32(wellknown.DNSEndpointPort))}
	}
	return discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name:      fmt.Sprintf("%s-nodes-%s-%d", service, strings.ToLower(string(family)), index),
			Namespace: namespace,
			Labels:    map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: manager},
		},
		AddressType: family, Endpoints: endpoints,
		Ports: []discoveryv1.EndpointPort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
	}
}
