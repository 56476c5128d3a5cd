package network

import (
	"encoding/json"
	"fmt"
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
		{"another mac is a new tunnel", []peer{node("a", "10.42.1.0/24", "192.168.0.1", mac2), b}, []string{"-10.42.1.0/24", "+10.42.1.0/24"}},
		{"a range that changes its owner is removed first", []peer{node("c", "10.42.1.0/24", "192.168.0.3", mac1), b}, []string{"-10.42.1.0/24", "+10.42.1.0/24"}},
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
		p := peer{name: "n", annotations: map[string]string{annManaged: managed, annType: kind, annData: data, annV6Data: data, annPublicIP: public, annPublicIPv6: public}}
		if r, err := netip.ParsePrefix(cidr); err == nil {
			p.ranges = append(p.ranges, r.Masked())
		}
		l, ok := p.lease(v4, v6)
		if ok {
			if l.EnableIPv4 != v4 || l.EnableIPv6 != v6 || v4 && l.Subnet.Empty() && l.Subnet.PrefixLen != 0 {
				t.Fatalf("%+v", l)
			}
			if _, err := json.Marshal(l); err != nil && data != "" {
				t.Fatalf("%v", err)
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
	b := believed{self: "self", cluster: ranges("10.42.0.0/16", "fd42::/56"), services: ranges("10.43.0.0/16"), ips: addr("192.168.0.9")}
	at := func(age int, p peer) peer {
		p.created = time.Unix(int64(1000-age), 0)
		p.addrs = addr(p.annotations[annPublicIP])
		return p
	}
	const mac1, mac2, mac3 = "aa:00:00:00:00:01", "aa:00:00:00:00:02", "aa:00:00:00:00:03"
	self, old := at(1, node("self", "10.42.0.0/24", "192.168.0.9", mac1)), at(9, node("old", "10.42.2.0/24", "192.168.0.2", mac2))
	younger := func(cidr, public, mac string) peer { return at(5, node("young", cidr, public, mac)) }
	elsewhere := func(p peer) peer { p.addrs = addr("192.168.0.3"); return p }
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
	// A machine that was renamed has the same tunnel as its former Node.
	renamed := at(5, node("young", "10.42.3.0/24", "192.168.0.2", mac2))
	accepted, refused := b.accept(map[string]peer{"self": self, "old": old, "young": renamed})
	if _, ok := accepted["young"].lease(true, true); !ok {
		t.Errorf("a renamed machine is refused: %q", refused)
	}
}

// TestPeerIsBounded: of a Node that holds as much as an object can little is kept.
func TestPeerIsBounded(t *testing.T) {
	n := &v1.Node{}
	n.Annotations = map[string]string{annData: strings.Repeat("x", 200_000)}
	for i := range 10_000 {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, fmt.Sprintf("10.42.%d.%d/32", i/250, i%250))
		n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", i/250, i%250)})
	}
	if p := peerOf(n); len(p.addrs) != maxAddresses || len(p.ranges) != maxRanges || len(p.annotations) != 0 {
		t.Errorf("kept: %d addresses, %d ranges, %d annotations", len(p.addrs), len(p.ranges), len(p.annotations))
	}
}
