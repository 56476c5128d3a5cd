package rules_test

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

var record = flag.Bool("record", false, "write the golden files anew (and fail)")

// TestGolden compares the text of each case with testdata/NAME.txt.
func TestGolden(t *testing.T) {
	ip, ep := netip.MustParseAddr, netip.MustParseAddrPort
	with := func(f func(s *rules.ServicePort)) []rules.ServicePort {
		s := svc()
		f(&s)
		return []rules.ServicePort{s}
	}
	v4 := rules.Config{Family: rules.IPv4, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	for name, c := range map[string]struct {
		cfg  rules.Config
		svcs []rules.ServicePort
	}{
		"cluster-ip": {v4, with(func(*rules.ServicePort) {})},
		"no-endpoints": {v4, with(func(s *rules.ServicePort) {
			s.Cluster, s.NodePort, s.ExternalIPs = nil, 30080, []netip.Addr{ip("198.51.100.1")}
		})},
		"node-port": {v4, with(func(s *rules.ServicePort) { s.NodePort = 30080 })},
		"external-policy-local": {v4, with(func(s *rules.ServicePort) {
			s.NodePort, s.ExternalLocal, s.LoadBalancerIPs, s.Local = 30080, true, []netip.Addr{ip("198.51.100.1")}, s.Cluster[:1]
		})},
		"external-policy-local-elsewhere": {v4,
			with(func(s *rules.ServicePort) { s.NodePort, s.ExternalLocal = 30080, true })},
		"internal-policy-local": {v4,
			with(func(s *rules.ServicePort) { s.InternalLocal, s.Local = true, s.Cluster[1:] })},
		"internal-policy-local-elsewhere": {v4,
			with(func(s *rules.ServicePort) { s.InternalLocal, s.Cluster, s.Anywhere = true, nil, true })},
		"affinity": {v4, with(func(s *rules.ServicePort) { s.Affinity, s.NodePort = 10800, 30080 })},
		"source-ranges": {v4, with(func(s *rules.ServicePort) {
			s.LoadBalancerIPs = []netip.Addr{ip("198.51.100.1")}
			s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"),
				netip.MustParsePrefix("192.0.2.128/25")}
		})},
		"same-address": {v4, append(with(func(s *rules.ServicePort) { s.Name = "ns/b"; s.Cluster = s.Cluster[:1] }),
			svc())},
		"ipv6-node-port-addresses": {rules.Config{Family: rules.IPv6,
			NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("fd02::/64")}}, []rules.ServicePort{{
			Name: "ns/six", Service: "ns/six", Protocol: rules.SCTP, ClusterIP: ip("fd43::1"), Port: 80,
			NodePort: 30080,
			Cluster:  []netip.AddrPort{ep("[fd42::1]:8080")}, Hairpin: []netip.Addr{ip("fd42::1")},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := rules.NewBuilder(c.cfg)
			for _, s := range c.svcs {
				b.Set(s)
			}
			var w bytes.Buffer
			b.DumpElems(&w)
			ruleset.DumpChains(&w, c.cfg.Variable(b.Classes()))
			if name == "cluster-ip" || c.cfg.Family == rules.IPv6 {
				ruleset.DumpChains(&w, c.cfg.Layout())
			}
			file := filepath.Join("testdata", name+".txt")
			if *record {
				if err := os.WriteFile(file, w.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Error("recorded")
				return
			}
			want, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(want, w.Bytes()) {
				t.Errorf("%v\ngot\n%s\nwant\n%s", err, w.Bytes(), want)
			}
		})
	}
}
