package nft

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/packetmark"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// TestOwnConnectionsPass: a Service has taken a server's address and port. What umiak sends there itself arrives
// nevertheless, also by a table of an older release, or one that somebody has written into, before anything is known
// of Services.
func TestOwnConnectionsPass(t *testing.T) {
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			w := newWorld(t, f, nil)
			w.client.Serve(t, 6443) // the server
			server := netip.MustParseAddr(w.pick("192.0.2.2", "fd02::2"))
			thief := rules.ServicePort{Name: "ns/thief:/TCP", Service: "ns/thief", Protocol: rules.TCP, Port: 6443,
				ClusterIP: netip.MustParseAddr(w.pick("10.43.0.9", "fd43::9")), ExternalIPs: []netip.Addr{server},
				Cluster: []netip.AddrPort{netip.MustParseAddrPort(w.pick("10.42.0.11:8080", "[fd42::11]:8080"))}}
			closed := thief
			closed.Cluster = nil
			ask := func(d *net.Dialer) (answer string, err error) {
				d.Timeout = nettest.Patience
				w.node.Do(func() {
					var c net.Conn
					if c, err = d.Dial("tcp", netip.AddrPortFrom(server, 6443).String()); err != nil {
						return
					}
					defer c.Close()
					var b []byte
					b, err = io.ReadAll(c)
					answer = string(b)
				})
				return answer, err
			}
			try := func(what string, want bool) {
				t.Helper()
				if got, err := ask(packetmark.Dialer()); strings.HasPrefix(got, "client ") != want {
					t.Errorf("%s, umiak's own: %q, %v", what, got, err)
				}
				if got, err := ask(&net.Dialer{}); strings.HasPrefix(got, "client ") {
					t.Errorf("%s, another's: %q, %v: the rule is not in force", what, got, err)
				}
			}
			for what, s := range map[string]rules.ServicePort{"with a pod": thief, "without pods": closed} {
				w.builder.Set(s)
				if _, err := w.table.Sync(t.Context(), w.builder); err != nil {
					t.Fatal(err)
				}
				try(what, true)
				fam := f.String()
				w.node.Do(func() {
					nettest.NFT(t, "flush chain "+fam+" umiak-proxy nat-output; add rule "+fam+
						" umiak-proxy nat-output jump services;"+
						"flush chain "+fam+" umiak-proxy filter-output; add rule "+fam+
						" umiak-proxy filter-output ct state new jump refuse-services")
				})
				try(what+", an older release's table", false)
				for range 2 {
					if err := w.table.Exempt(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				try(what+", exempt", true)
				w.node.Do(func() {
					if text := list(t, f); strings.Count(text, "0x00002000") != 3 {
						t.Error(text)
					}
				})
			}
			if err := w.conn.Remove(t.Context(), rules.TableName); err != nil {
				t.Fatal(err)
			}
			if err := w.table.Exempt(t.Context()); err != nil {
				t.Errorf("no table: %v", err)
			}
		})
	}
}
