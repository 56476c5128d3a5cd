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

// Vars are the values that differ from cluster to cluster.
func Vars(clusterDomain string, clusterDNS []netip.Addr) (map[string]string, error) {
	if len(clusterDNS) == 0 {
		return nil, errors.New("no cluster DNS address")
	}
	var families, addresses []string
	for _, a := range clusterDNS {
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
	return map[string]string{
		"CLUSTER_DOMAIN":   clusterDomain,
		"CLUSTER_DNS":      addresses[0],
		"CLUSTER_DNS_ALL":  list(addresses),
		"IP_FAMILIES":      list(families),
		"IP_FAMILY_POLICY": policy,
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
