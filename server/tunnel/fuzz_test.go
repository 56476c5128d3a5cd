package tunnel

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// FuzzNode: whatever a Node says, what is kept of it is bounded, is within the cluster's ranges, and can be forgotten.
func FuzzNode(f *testing.F) {
	f.Add([]byte(`{"metadata":{"name":"a"},"spec":{"podCIDRs":["10.42.1.0/24","fd42::/64"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.7"},{"type":"ExternalIP","address":"::ffff:192.0.2.8"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":10250}}}}`))
	f.Add([]byte(`{"metadata":{"name":"a"},"spec":{"podCIDR":"0.0.0.0/0"},"status":{"addresses":[{"type":"InternalIP","address":"10.42.0.1"},{"type":"InternalIP","address":"fe80::1%eth0"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":-1}}}}`))
	f.Add([]byte(`{"metadata":{"name":""},"spec":{"podCIDRs":["10.42.0.0/15","10.42.0.9/16","x"]}}`))
	cluster := []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var o corev1.Node
		if json.Unmarshal(raw, &o) != nil {
			return
		}
		n := NewNodes(cluster)
		got := n.parse(&o)
		if len(got.addrs) > maxAddresses || len(got.ranges) > maxRanges {
			t.Fatalf("%d addresses and %d ranges are kept", len(got.addrs), len(got.ranges))
		}
		for _, a := range got.addrs {
			if n.inPodRanges(netip.PrefixFrom(a, a.BitLen())) || a.Zone() != "" {
				t.Errorf("address %s is kept", a)
			}
		}
		for _, r := range got.ranges {
			if !n.inPodRanges(r) || r != r.Masked() {
				t.Errorf("range %s is kept", r)
			}
		}
		n.set(&o)
		for _, a := range got.addrs {
			if p, ok := n.Lookup(a.String()); !ok || p.Node != o.Name {
				t.Errorf("%s is found as %+v, %v", a, p, ok)
			}
		}
		n.forget(o.Name)
		if len(n.nodes)+len(n.addrs)+len(n.ranges) != 0 {
			t.Errorf("left: %v %v %v", n.nodes, n.addrs, n.ranges)
		}
	})
}

// FuzzUpgrade: no request but the tunnel's own is taken for one.
func FuzzUpgrade(f *testing.F) {
	f.Add([]byte("GET " + tunnelwire.Path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " +
		tunnelwire.Protocol + "\r\n\r\n"))
	f.Add([]byte("GET http: HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: " + tunnelwire.Protocol +
		"\r\n\r\n"))
	f.Add([]byte("POST " + tunnelwire.Path + " HTTP/1.0\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		if wellFormed(r) == nil && (r.Method != http.MethodGet || r.URL.Path != tunnelwire.Path ||
			r.Header.Get("Upgrade") != tunnelwire.Protocol || !strings.HasPrefix(r.Proto, "HTTP/1.")) {
			t.Errorf("taken for a tunnel: %q", raw)
		}
	})
}
