package network

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/flannel-io/flannel/pkg/lease"
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
