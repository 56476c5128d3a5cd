package network

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"
	v1 "k8s.io/api/core/v1"
)

func node(name, cidr, public, mac string) peer {
	return peer{name: name, ranges: []netip.Prefix{netip.MustParsePrefix(cidr)}, annotations: map[string]string{
		annManaged: "true", annType: "vxlan", annPublicIP: public, annData: `{"VNI":1,"VtepMAC":"` + mac + `"}`,
	}}
}

func TestDiff(t *testing.T) {
	const mac1, mac2 = "aa:00:00:00:00:01", "aa:00:00:00:00:02"
	a, b := node("a", "10.42.1.0/24", "192.168.0.1", mac1), node("b", "10.42.2.0/24", "192.168.0.2", mac1)
	fresh := peer{name: "new", ranges: a.ranges}
	steps := []struct {
		name string
		all  []peer
		want []string
	}{
		{"self and unready nodes are left out", []peer{node("self", "10.42.0.0/24", "192.168.0.9", mac1), fresh}, nil},
		{"first", []peer{a, b}, []string{"+10.42.1.0/24", "+10.42.2.0/24"}},
		{"nothing new", []peer{a, b}, nil},
		{"another mac is a new tunnel", []peer{node("a", "10.42.1.0/24", "192.168.0.1", mac2), b},
			[]string{"-10.42.1.0/24", "+10.42.1.0/24"}},
		{"a range that changes its owner is removed first", []peer{node("c", "10.42.1.0/24", "192.168.0.3", mac1), b},
			[]string{"-10.42.1.0/24", "+10.42.1.0/24"}},
		{"gone", nil, []string{"-10.42.2.0/24", "-10.42.1.0/24"}},
	}
	sent := map[string]lease.Lease{}
	for _, s := range steps {
		all := map[string]peer{}
		for _, p := range s.all {
			all[p.name] = p
		}
		var got []string
		for _, e := range diff(sent, all, "self", true, false) {
			sign := map[lease.EventType]string{lease.EventAdded: "+", lease.EventRemoved: "-"}[e.Type]
			got = append(got, sign+e.Lease.Subnet.String())
		}
		if !slices.Equal(got, s.want) {
			t.Errorf("%s: got %v, want %v", s.name, got, s.want)
		}
	}
}

func FuzzLease(f *testing.F) {
	f.Add("true", "vxlan", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"}`, "192.168.0.1", "10.42.1.0/24", true, false)
	f.Add("true", "host-gw", "", "::1", "fd00::/64", false, true)
	f.Add("", "", "{", "x", "10.42.1.1/24", true, true)
	f.Fuzz(func(t *testing.T, managed, kind, data, public, cidr string, v4, v6 bool) {
		p := peer{name: "n", annotations: map[string]string{annManaged: managed, annType: kind, annData: data,
			annV6Data: data, annPublicIP: public, annPublicIPv6: public}}
		if r, err := netip.ParsePrefix(cidr); err == nil {
			p.ranges = append(p.ranges, r.Masked())
		}
		all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
		accepted, refused := believed{self: "self", backend: "vxlan", cluster: all,
			services: nil}.accept(map[string]peer{"n": p})
		l, ok := accepted["n"].lease(v4, v6)
		if !ok {
			return
		}
		if kind != "vxlan" || l.EnableIPv4 == l.EnableIPv6 {
			t.Fatalf("%+v, refused %q", l, refused)
		}
		for _, raw := range []json.RawMessage{l.Attrs.BackendData, l.Attrs.BackendV6Data} {
			if raw == nil {
				continue
			}
			var d struct{ VtepMAC string } // as flannel's backend reads it
			err := json.Unmarshal(raw, &d)
			if mac, bad := net.ParseMAC(d.VtepMAC); err != nil || bad != nil || len(mac) != 6 || mac[0]&1 != 0 {
				t.Fatalf("%s: %v, %v", raw, err, bad)
			}
		}
	})
}

func FuzzParseSaved(f *testing.F) {
	f.Add([]byte(`{"podCIDRs":["10.42.0.0/24"],"mtu":1450}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := parseSaved(raw)
		if err != nil {
			return
		}
		for _, p := range s.PodCIDRs {
			if !p.IsValid() {
				t.Fatalf("%v", s)
			}
		}
	})
}

// TestAccept: of ranges and addresses that nodes claim each is believed what it can have: its own, and nobody else's.
func TestAccept(t *testing.T) {
	ranges := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	b := believed{self: "self", backend: "vxlan", cluster: ranges("10.42.0.0/16", "fd42::/56"),
		services: ranges("10.43.0.0/16"), ips: addr("192.168.0.9")}
	at := func(age int, p peer) peer {
		p.created = time.Unix(int64(1000-age), 0)
		p.addrs = addr(p.annotations[annPublicIP])
		p.internal = p.addrs
		return p
	}
	const mac1, mac2, mac3 = "aa:00:00:00:00:01", "aa:00:00:00:00:02", "aa:00:00:00:00:03"
	self, old := at(1, node("self", "10.42.0.0/24", "192.168.0.9", mac1)), at(9,
		node("old", "10.42.2.0/24", "192.168.0.2", mac2))
	younger := func(cidr, public, mac string) peer { return at(5, node("young", cidr, public, mac)) }
	says := func(data string) peer {
		p := younger("10.42.3.0/24", "192.168.0.3", "")
		p.annotations[annData] = data
		return p
	}
	elsewhere := func(p peer) peer { p.addrs, p.internal = addr("192.168.0.3"), addr("192.168.0.3"); return p }
	overwritten := elsewhere(younger("10.42.3.0/24", "192.168.0.77", mac3))
	overwritten.annotations[annOverride] = "192.168.0.77"
	for _, c := range []struct {
		name string
		p    peer
		ok   bool
	}{
		{"its own", younger("10.42.3.0/24", "192.168.0.3", mac3), true},
		{"a smaller range than others", younger("10.42.3.128/25", "192.168.0.3", mac3), true},
		{"outside", younger("203.0.113.0/24", "192.168.0.3", mac3), false},
		{"a host beside", younger("10.93.0.100/32", "192.168.0.3", mac3), false},
		{"everything", younger("0.0.0.0/0", "192.168.0.3", mac3), false},
		{"the cluster's", younger("10.42.0.0/16", "192.168.0.3", mac3), false},
		{"a pod of an older one", younger("10.42.2.2/32", "192.168.0.3", mac3), false},
		{"the range of an older one", younger("10.42.2.0/24", "192.168.0.3", mac3), false},
		{"a range around an older one", younger("10.42.2.0/23", "192.168.0.3", mac3), false},
		{"a pod of this node, from an older one", at(20, node("young", "10.42.0.7/32", "192.168.0.3", mac3)), false},
		{"reached at this node", younger("10.42.3.0/24", "192.168.0.9", mac3), false},
		{"reached at another node", elsewhere(younger("10.42.3.0/24", "192.168.0.2", mac3)), false},
		{"reached at a pod", elsewhere(younger("10.42.3.0/24", "10.42.2.2", mac3)), false},
		{"reached at a Service", elsewhere(younger("10.42.3.0/24", "10.43.0.1", mac3)), false},
		{"reached at loopback", elsewhere(younger("10.42.3.0/24", "127.0.0.1", mac3)), false},
		{"reached by flannel-iface", elsewhere(younger("10.42.3.0/24", "172.16.0.3", mac3)), true},
		{"reached where an administrator says", overwritten, true},
		{"the MAC of an older one", younger("10.42.3.0/24", "192.168.0.3", mac2), false},
		{"the MAC of an older one, with dashes", younger("10.42.3.0/24", "192.168.0.3", "AA-00-00-00-00-02"), false},
		{"the MAC of an older one, with points", younger("10.42.3.0/24", "192.168.0.3", "aa00.0000.0002"), false},
		{"the MAC of an older one, with a key", says(`{"VNI":1,"VtepMAC":"aa:00:00:00:00:02","PublicKey":"x"}`), false},
		{"the MAC of an older one, twice",
			says(`{"VNI":1,"VtepMAC":"aa:00:00:00:00:03","vtepmac":"aa:00:00:00:00:02"}`), false},
		{"no MAC", says(`{}`), false},
		{"nothing", says(`null`), false},
		{"no data", says(``), false},
		{"another network", says(`{"VNI":2,"VtepMAC":"aa:00:00:00:00:03"}`), false},
		{"the MAC of this one", younger("10.42.3.0/24", "192.168.0.3", mac1), false},
	} {
		all := map[string]peer{"self": self, "old": old, "young": c.p}
		accepted, refused := b.accept(all)
		if _, ok := accepted["young"].lease(true, true); ok != c.ok || (len(refused) == 0) != c.ok {
			t.Errorf("%s: lease %v, refused %q", c.name, ok, refused)
		}
		if l, ok := accepted["old"].lease(true, true); !ok || l.Subnet.String() != "10.42.2.0/24" {
			t.Errorf("%s: the older node's lease is %v, %v", c.name, l, ok)
		}
		if got := accepted["self"].ranges; !slices.Equal(got, self.ranges) {
			t.Errorf("%s: this node's ranges are %v", c.name, got)
		}
	}
	// A machine that was renamed has the tunnel of its former Node, if it has the address.
	renamed := at(5, node("young", "10.42.3.0/24", "192.168.0.2", mac2))
	for _, has := range []bool{true, false} {
		accepted, refused := b.accept(map[string]peer{"self": self, "old": old, "young": renamed})
		_, young := accepted["young"].lease(true, true)
		if _, older := accepted["old"].lease(true, true); young != has || older == has || len(refused) != 1 {
			t.Errorf("a renamed machine has a lease: %v, its former Node: %v, refused %q", young, older, refused)
		}
		old = at(9, node("old", "10.42.2.0/24", "172.16.0.2", mac2)) // by flannel-iface
		old.addrs, renamed = addr("192.168.0.2"), elsewhere(at(5, node("young", "10.42.3.0/24", "172.16.0.2", mac2)))
	}
}

// TestAcceptWireGuard: a node has one key in both families, and nobody else has it, however it is written.
func TestAcceptWireGuard(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	const key, other = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=", "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyE="
	wg := func(name string, age int64, n int, data string) peer {
		v4, v6 := fmt.Sprintf("192.168.0.%d", n), fmt.Sprintf("fd00::%d", n)
		return peer{name: name, created: time.Unix(1000-age, 0), addrs: addrs(v4, v6),
			ranges: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.42.%d.0/24", n)),
				netip.MustParsePrefix(fmt.Sprintf("fd42:0:0:%d::/64", n))},
			annotations: map[string]string{annManaged: "true", annType: "wireguard", annPublicIP: v4, annPublicIPv6: v6,
				annData: data, annV6Data: data}}
	}
	b := believed{self: "self", backend: "wireguard", ips: addrs("192.168.0.9"),
		cluster: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/48")}}
	for data, ok := range map[string]bool{
		`{"PublicKey":"` + other + `","Port":51820}`:                  true,
		`{"PublicKey":"` + other + `"}`:                               true, // older releases of flannel
		`{"PublicKey":"` + key + `","Port":51820}`:                    false,
		`{"PublicKey":"` + key + `","VtepMAC":"x"}`:                   false,
		`{"PublicKey":"` + key[:20] + `\n` + key[20:] + `"}`:          false,
		`{"PublicKey":"` + strings.Replace(key, "A=", "B=", 1) + `"}`: false, // the same 32 bytes
		`{"PublicKey":"AAAA"}`:                                        false,
		`{"PublicKey":"` + other + `"}{}`:                             false,
		`{}`:                                                          false,
	} {
		accepted, refused := b.accept(map[string]peer{"old": wg("old", 9, 2, `{"PublicKey":"`+key+`","Port":51820}`),
			"young": wg("young", 5, 3, data)})
		l, has := accepted["young"].lease(true, true)
		if has != ok || has && (!l.EnableIPv4 || !l.EnableIPv6) || (len(refused) == 0) != ok {
			t.Errorf("%s: %+v, refused %q", data, l, refused)
		}
		if l, has := accepted["old"].lease(true, true); !has || !l.EnableIPv4 || !l.EnableIPv6 {
			t.Errorf("%s: the older node's lease is %+v", data, l)
		}
	}
	vxlan := wg("young", 5, 3, `{"PublicKey":"`+other+`"}`)
	vxlan.annotations[annType] = "vxlan"
	if accepted, refused := b.accept(map[string]peer{"young": vxlan}); len(refused) != 2 ||
		accepted["young"].annotations[annPublicIP] != "" {
		t.Errorf("another backend: %q", refused)
	}
}

// TestPeerIsBounded: of a Node that holds as much as an object can little is kept.
func TestPeerIsBounded(t *testing.T) {
	n := &v1.Node{}
	n.Annotations = map[string]string{annData: strings.Repeat("x", 200_000)}
	for i := range 10_000 {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, fmt.Sprintf("10.42.%d.%d/32", i/250, i%250))
		n.Status.Addresses = append(n.Status.Addresses,
			v1.NodeAddress{Type: v1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", i/250, i%250)})
	}
	if p := peerOf(n); len(p.addrs) != maxAddresses || len(p.ranges) != maxRanges || len(p.annotations) != 0 {
		t.Errorf("kept: %d addresses, %d ranges, %d annotations", len(p.addrs), len(p.ranges), len(p.annotations))
	}
}
