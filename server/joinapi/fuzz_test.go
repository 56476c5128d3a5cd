package joinapi

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/umiak-io/umiak/internal/joinwire"
)

// FuzzCheck: whatever a machine asks for, it gets no name, address or subject but its own.
func FuzzCheck(f *testing.F) {
	k := key(f)
	good := request(f, k)
	f.Add(good.Name, good.Password, "10.0.0.7", "203.0.113.7", good.Kubelet, good.Agent, good.Serving)
	f.Add("srv", good.Password, "10.0.0.1", "10.0.0.1", good.Kubelet, good.Agent, good.Serving)
	f.Add("n1", good.Password, "::ffff:10.43.0.1", "fe80::1%eth0", good.Agent, good.Kubelet, good.Serving)
	f.Add("n1", good.Password, "fd00::7", "", good.Kubelet, good.Agent,
		csr(f, k, name("system:node:n1", "system:nodes"), []string{"n1", "kubernetes"}))
	f.Fuzz(func(t *testing.T, node, password, ip, external, kubelet, agent, serving string) {
		r := &joinwire.NodeRequest{Name: node, Password: password, IPs: []string{ip, "fd00::7"},
			ExternalIPs: []string{external}, Kubelet: kubelet, Agent: agent, Serving: serving}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again := &joinwire.NodeRequest{} // as it comes from the network
		if err := json.Unmarshal(raw, again); err != nil {
			t.Fatal(err)
		}
		n, err := check(again, servers)
		if err != nil {
			return
		}
		if len(validation.IsDNS1123Subdomain(n.name)) > 0 || slices.Contains(servers.names, n.name) ||
			n.name != again.Name {
			t.Errorf("name %q", n.name)
		}
		for _, s := range slices.Concat(n.ips, n.external) {
			a, err := netip.ParseAddr(s)
			if err != nil || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() || slices.Contains(servers.ips, a) ||
				slices.ContainsFunc(servers.ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
				t.Errorf("address %q", s)
			}
		}
		for _, c := range []struct {
			subject, want string
			names         int
		}{
			{n.kubelet.Subject.CommonName, "system:node:" + n.name, len(n.kubelet.DNSNames)},
			{n.agent.Subject.CommonName, "umiak:agent:" + n.name, len(n.agent.DNSNames)},
			{n.serving.Subject.CommonName, "system:node:" + n.name, len(n.serving.DNSNames) - 1},
		} {
			if c.subject != c.want || c.names != 0 {
				t.Errorf("subject %q with %d more names", c.subject, c.names)
			}
		}
	})
}
