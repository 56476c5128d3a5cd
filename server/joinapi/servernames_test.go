package joinapi

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// TestNamesOfServers: names in the certificates of all servers are no node's, however they are written.
func TestNamesOfServers(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	known, stop, err := tokens.follow(t.Context(), func() {}, newMembers(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	publish := func(server string, list ...string) {
		t.Helper()
		if err := tokens.publishNames(t.Context(), server, list, nil); err != nil {
			t.Fatal(err)
		}
	}
	publish("s1", "s1.example.org")
	publish("s1", "API.example.org", "*.apps.example.org")
	publish("s2", "plain", "s2")
	want := []string{"*.apps.example.org", "API.example.org", "plain", "s2"}
	sorted := func(but string) []string { return slices.Sorted(slices.Values(known.serverNames(but))) }
	eventually.Nil(t, "the names of both servers", func() error {
		if got := sorted(""); !slices.Equal(got, want) {
			return fmt.Errorf("the API has %q", got)
		}
		return nil
	})
	for name, refused := range map[string]bool{
		"api.example.org": true, "console.apps.example.org": true, "plain": true, "s2": true,
		"apps.example.org": false, "a.console.apps.example.org": false, "plainer": false, "example.org": false,
	} {
		if err := checkName(name, strings.Repeat("p", 32), known.serverNames("")); (err != nil) != refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := plain([]string{"API.example.org", "*.apps.example.org", "plain"}); !slices.Equal(got, []string{"plain"}) {
		t.Errorf("who has joined is refused to renew as %q", got)
	}
	if slices.Contains(sorted("s2"), "s2") {
		t.Error("a server that joins again is refused its own name")
	}
	if err := tokens.WithdrawNames(t.Context(), "s2"); err != nil {
		t.Error(err)
	}
	if err := tokens.WithdrawNames(t.Context(), "s2"); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestWasServer: a Node without the servers' label takes no member out of the cluster when it is deleted.
func TestWasServer(t *testing.T) {
	node := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	if wasServer(node) {
		t.Error("an agent's Node passes for a server's")
	}
	node.Labels = map[string]string{wellknown.ServerRole: "true"}
	if !wasServer(node) || !wasServer(cache.DeletedFinalStateUnknown{Obj: node}) {
		t.Error("a server's Node passes for an agent's")
	}
}

// TestAddressesInCertificatesOfServers covers an address in another server's tls-san, as a virtual one: no agent gets
// it, in its certificate or in its Node's status; servers that list each other do, and so does an agent that had it
// before.
func TestAddressesInCertificatesOfServers(t *testing.T) {
	a, s := registry(t)
	a.cfg.IPs = func() []string { return nil }
	vip, early, second := netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("192.0.2.51"), netip.MustParseAddr("192.0.2.52")
	joins(t, a, s, "n1", "192.0.2.1")
	joins(t, a, s, "n2", early.String())
	if _, err := s.tokens.Reserve(t.Context(), "s2", "password of s2", []netip.Addr{second}); err != nil {
		t.Fatal(err)
	}
	publish := func(ips ...netip.Addr) {
		t.Helper()
		if err := s.tokens.publishNames(t.Context(), "s1", []string{"s1"}, ips); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, "the addresses of server s1", func() bool {
			return len(s.known.serverIPs()) == len(ips) &&
				a.members.isServer("s2")
		})
	}
	publish()
	publish(vip, early, second)
	k := key(t)
	ask := func(who string, ip netip.Addr, external ...string) (*node, error) {
		r := request(t, k)
		r.Name, r.IPs, r.ExternalIPs = who, []string{ip.String()}, external
		r.Kubelet, r.Serving = csr(t, k, name("system:node:"+who, "system:nodes"), nil), csr(t, k,
			name("system:node:"+who, "system:nodes"), []string{who}, ip.AsSlice())
		r.Agent = csr(t, k, name("umiak:agent:"+who, "umiak:agents"), nil)
		return a.check(t.Context(), s, r, nil)
	}
	for _, c := range []struct {
		name    string
		ip      netip.Addr
		refused bool
	}{{"n1", vip, true}, {"new", vip, true}, {"n1", early, true}, {"n2", early, false}, {"s2", second, false},
		{"s2", vip, false}, {"n1", netip.MustParseAddr("192.0.2.1"), false}} {
		if _, err := ask(c.name, c.ip); (err != nil) != c.refused || err != nil &&
			!strings.Contains(err.Error(), "server s1 has it in its certificate (tls-san)") {
			t.Errorf("%s asks for %s: %v", c.name, c.ip, err)
		}
		if err := a.Foreign(t.Context(), c.name, c.ip); (err != nil) != c.refused {
			t.Errorf("%s is reached at %s: %v", c.name, c.ip, err)
		}
	}
	// Behind one router a node may have an external address of a server: its certificate goes without.
	if n, err := ask("n1", netip.MustParseAddr("192.0.2.1"), vip.String()); err != nil || len(n.external) > 0 ||
		len(n.seen) != 1 {
		t.Errorf("an external address of a server: %+v, %v", n, err)
	}
	publish(early)
	if _, err := ask("n1", vip); err != nil {
		t.Errorf("an address that is no server's any more: %v", err)
	}
}
