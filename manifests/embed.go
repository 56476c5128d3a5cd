// Package manifests holds the objects that every cluster gets, as YAML that can be read here.
//
// server/addons applies them and keeps them applied. ${NAME} is replaced by what Vars gives. A user turns
// one off with --disable NAME, or replaces it with a file of the same name in <data-dir>/server/manifests.
// What umiak's own identities may do is not here but in server/controlplane/access.go: it has to be in
// force before the first node asks.
package manifests

import (
	"embed"
	"encoding/json"
	"errors"
	"net/netip"
)

// FS has the files.
//
//go:embed *.yaml
var FS embed.FS

// Cluster describes what differs from cluster to cluster.
type Cluster struct {
	Domain string
	// DNS are the addresses of the DNS Service, one a family; at least one is needed.
	DNS []netip.Addr
	// OtherProxy means that another proxy than the nodes' own serves Services.
	OtherProxy bool
}

// Vars returns the values of the variables in the files.
func Vars(c Cluster) (map[string]string, error) {
	if len(c.DNS) == 0 {
		return nil, errors.New("no cluster DNS address")
	}
	var families, addresses []string
	for _, a := range c.DNS {
		addresses = append(addresses, a.String())
		family := "IPv6"
		if a.Is4() {
			family = "IPv4"
		}
		families = append(families, family)
	}
	policy := "SingleStack"
	if len(families) > 1 {
		policy = "RequireDualStack"
	}
	traffic := "Cluster"
	if c.OtherProxy { // the endpoints are the nodes, each for its own pods: server/dnsendpoints
		traffic = "Local"
	}
	return map[string]string{
		"CLUSTER_DOMAIN":   c.Domain,
		"CLUSTER_DNS":      addresses[0],
		"CLUSTER_DNS_ALL":  list(addresses),
		"IP_FAMILIES":      list(families),
		"IP_FAMILY_POLICY": policy,
		"DNS_TRAFFIC":      traffic,
	}, nil
}

// list is a YAML list on one line, which is JSON.
func list(s []string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}
