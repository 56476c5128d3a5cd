package nft

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestDocs prints the example of docs/service-proxy.md, if asked to: UMIAK_DOCS=FILE.
func TestDocs(t *testing.T) {
	file := os.Getenv("UMIAK_DOCS")
	if file == "" {
		t.Skip("UMIAK_DOCS is not set")
	}
	c := nettest.Alone(t)
	cfg := config(rules.IPv4)
	b := rules.NewBuilder(cfg)
	ep := netip.MustParseAddrPort
	dns := rules.ServicePort{Name: "kube-system/kube-dns:dns/UDP", Protocol: rules.UDP,
		ClusterIP: netip.MustParseAddr("10.43.0.10"), Port: 53,
		Cluster: []netip.AddrPort{ep("10.42.0.2:53")}, Hairpin: []netip.Addr{netip.MustParseAddr("10.42.0.2")}}
	web := rules.ServicePort{Name: "default/web:http/TCP", Protocol: rules.TCP,
		ClusterIP: netip.MustParseAddr("10.43.7.1"), Port: 80, NodePort: 30080,
		Cluster: []netip.AddrPort{ep("10.42.0.5:8080"), ep("10.42.1.9:8080")},
		Hairpin: []netip.Addr{netip.MustParseAddr("10.42.0.5")}}
	none := rules.ServicePort{Name: "default/empty:http/TCP", Protocol: rules.TCP,
		ClusterIP: netip.MustParseAddr("10.43.7.2"), Port: 80}
	for _, s := range []rules.ServicePort{dns, web, none} {
		b.Set(s)
	}
	tb, err := NewTable(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tb.Sync(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(list(t, rules.IPv4)), 0o644); err != nil {
		t.Fatal(err)
	}
}
