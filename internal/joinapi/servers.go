package joinapi

import (
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Servers are the addresses, as HOST:PORT, that the slices of the Service default/kubernetes name.
func Servers(slicesOf []discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range slicesOf {
		for _, p := range s.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != "https" {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
