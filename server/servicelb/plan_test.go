package servicelb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/internal/wellknown"
)

func testNode(name string, mod func(*corev1.Node), addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{},
		Labels: map[string]string{}}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = 10250
	if mod != nil {
		mod(n)
	}
	return n
}

// svc makes a Service; "80" is TCP, "53/UDP" UDP. n is its age: a smaller one is older.
func svc(n int, ports string, mod ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s%d", n),
		CreationTimestamp: metav1.NewTime(time.Unix(int64(n), 0))},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}}}
	for _, p := range strings.Split(ports, ",") {
		for k := range parsePorts(p + map[bool]string{true: "", false: "/TCP"}[strings.Contains(p, "/")]) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: k.port, Protocol: k.proto})
		}
	}
	for _, f := range mod {
		f(s)
	}
	return s
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}
func wants(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerIP = ip }
}
func class(c string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &c }
}
func dual(s *corev1.Service) {
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
}

// has is a Service that was given these addresses for all of its ports, in the form in which we give them.
func has(ips ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		var addrs []netip.Addr
		for _, ip := range ips {
			addrs = append(addrs, netip.MustParseAddr(ip))
		}
		s.Status.LoadBalancer.Ingress = ingress(s, addrs)
	}
}

func text(r Result) string {
	var a []string
	for _, x := range r.Addrs {
		a = append(a, x.String())
	}
	return strings.TrimSpace(strings.Join(a, " ") + " " + r.Reason)
}

func TestPlan(t *testing.T) {
	one, two := testNode("one", nil, "192.0.2.1", "fd00::1"), testNode("two", nil, "192.0.2.2")
	both := []*corev1.Node{one, two}
	mod := func(f func(*corev1.Node)) *corev1.Node { return testNode("two", f, "192.0.2.2") }
	for _, c := range []struct {
		name  string
		nodes []*corev1.Node
		pool  []string
		svcs  []*corev1.Service
		want  []string // of each Service; "" is not ours
	}{
		{"all nodes", both, nil, []*corev1.Service{svc(1, "80")}, []string{"192.0.2.1 192.0.2.2 Served"}},
		{"dual stack", both, nil, []*corev1.Service{svc(1, "80", dual)},
			[]string{"192.0.2.1 192.0.2.2 fd00::1 Served"}},
		{"excluded node", []*corev1.Node{one,
			mod(func(n *corev1.Node) { n.Labels[corev1.LabelNodeExcludeBalancers] = "" })}, nil, []*corev1.Service{svc(1, "80")}, []string{"192.0.2.1 Served"}},
		{"node that does not answer", []*corev1.Node{one, mod(func(n *corev1.Node) { n.Status.Conditions = nil })}, nil,
			[]*corev1.Service{svc(1, "80")}, []string{"192.0.2.1 Served"}},
		{"no node answers", []*corev1.Node{mod(func(n *corev1.Node) { n.Status.Conditions = nil })}, nil,
			[]*corev1.Service{svc(1, "80")}, []string{"192.0.2.2 Served"}},
		{"external address first", []*corev1.Node{mod(func(n *corev1.Node) {
			n.Status.Addresses = append(n.Status.Addresses,
				corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "198.51.100.7"})
		})}, nil, []*corev1.Service{svc(1, "80")}, []string{"198.51.100.7 192.0.2.2 Served"}},
		{"no nodes", nil, nil, []*corev1.Service{svc(1, "80")}, []string{"NoAddress"}},
		{"local policy", both, nil, []*corev1.Service{svc(1, "80", local), svc(9, "90", local)},
			[]string{"192.0.2.2 Served", "NoAddress"}},
		{"classes", both, nil, []*corev1.Service{svc(1, "80", class("other")),
			svc(2, "80", class(wellknown.LoadBalancerClass))}, []string{"", "192.0.2.1 192.0.2.2 Served"}},
		{"address shared", both, nil, []*corev1.Service{svc(1, "80"), svc(2, "443"), svc(3, "80/UDP")},
			[]string{"192.0.2.1 192.0.2.2 Served", "192.0.2.1 192.0.2.2 Served", "192.0.2.1 192.0.2.2 Served"}},
		{"port conflict: the older has it", both, nil, []*corev1.Service{svc(2, "80,81"), svc(1, "80")},
			[]string{"PortConflict", "192.0.2.1 192.0.2.2 Served"}},
		{"port conflict: who has it keeps it", both, nil,
			[]*corev1.Service{svc(2, "80", has("192.0.2.1", "192.0.2.2")), svc(1, "80")},
			[]string{"192.0.2.1 192.0.2.2 Served", "PortConflict"}},
		{"port conflict on one node", both, nil,
			[]*corev1.Service{svc(1, "80", local, func(s *corev1.Service) { s.Name = "s1" }),
				svc(2, "80")}, []string{"192.0.2.2 Served", "192.0.2.1 ServedOnSomeNodes"}},
		{"port of a host's program", []*corev1.Node{one,
			mod(func(n *corev1.Node) { n.Annotations[wellknown.HostPorts] = "80/TCP,53/UDP" })}, nil,
			[]*corev1.Service{svc(1, "80"), svc(2, "53"), svc(3, "53/UDP")},
			[]string{"192.0.2.1 ServedOnSomeNodes", "192.0.2.1 192.0.2.2 Served", "192.0.2.1 ServedOnSomeNodes"}},
		{"port of the hosts' programs", []*corev1.Node{mod(func(n *corev1.Node) { n.Annotations[wellknown.HostPorts] = "80/TCP" })}, nil, []*corev1.Service{svc(1, "80")}, []string{"HostPortInUse"}},
		{"reserved ports", both, nil, []*corev1.Service{svc(1, "6443"), svc(2, "10250"), svc(3, "6443/UDP")},
			[]string{"PortReserved", "PortReserved", "192.0.2.1 192.0.2.2 Served"}},
		{"asked for", both, nil, []*corev1.Service{svc(1, "80", wants("192.0.2.2")), svc(2, "80"),
			svc(3, "81", wants("192.0.2.9"))}, []string{"192.0.2.2 Served",
			"192.0.2.1 ServedOnSomeNodes", "AddressNotOffered"}},
		{"pool", both, []string{"198.51.100.1-198.51.100.2"},
			[]*corev1.Service{svc(1, "80"), svc(2, "80"), svc(3, "80"), svc(4, "81")},
			[]string{"198.51.100.1 Served", "198.51.100.2 Served", "PortConflict", "198.51.100.1 Served"}},
		{"pool: kept", both, []string{"198.51.100.0/24"},
			[]*corev1.Service{svc(1, "80"), svc(2, "80", has("198.51.100.0"))},
			[]string{"198.51.100.1 Served", "198.51.100.0 Served"}},
		{"pool: asked for and shared", both, []string{"198.51.100.0/24"},
			[]*corev1.Service{svc(1, "80", wants("198.51.100.9")), svc(2, "81", wants("198.51.100.9")),
				svc(3, "81", wants("198.51.100.9"))},
			[]string{"198.51.100.9 Served", "198.51.100.9 Served", "PortConflict"}},
		{"pool: large", both, []string{"2001:db8::/64", "198.51.100.1"},
			[]*corev1.Service{svc(1, "6443", dual), svc(2, "6443", dual)},
			[]string{"198.51.100.1 2001:db8:: Served", "2001:db8::1 Served"}},
		{"pool: a node's address", both, []string{"192.0.2.1"}, []*corev1.Service{svc(1, "6443"), svc(2, "80")},
			[]string{"PortReserved", "192.0.2.1 Served"}},
		{"pool: other family", both, []string{"fd01::1"}, []*corev1.Service{svc(1, "80")}, []string{"NoAddress"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := Planner{Pool: pool(t, c.pool...), Reserved: func(port int32, proto corev1.Protocol) string {
				if port == 6443 && proto == corev1.ProtocolTCP {
					return "the API server"
				}
				return ""
			}}
			on := func(n types.NamespacedName) map[string]bool { return map[string]bool{"two": n.Name != "s9"} }
			for range 5 { // in any order
				nodes, svcs := slices.Clone(c.nodes), slices.Clone(c.svcs)
				rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
				rand.Shuffle(len(svcs), func(i, j int) { svcs[i], svcs[j] = svcs[j], svcs[i] })
				got := p.Plan(nodes, svcs, on)
				for i, s := range c.svcs {
					r, mine := got[name(s)]
					if have := text(r); have != c.want[i] || mine != (c.want[i] != "") {
						t.Fatalf("%s: got %q (%s), want %q", s.Name, have, r.Message, c.want[i])
					}
				}
			}
		})
	}
}

// TestPlanNeverGivesAPortTwice: whatever there is, and whatever the status says from before, a port on an
// address has one owner, and planning again from the result changes nothing.
func TestPlanNeverGivesAPortTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 300 {
		var nodes []*corev1.Node
		for i := range 1 + r.IntN(4) {
			nodes = append(nodes, testNode(fmt.Sprint("n", i), func(n *corev1.Node) {
				if r.IntN(3) == 0 {
					n.Annotations[wellknown.HostPorts] = fmt.Sprintf("%d/TCP", 80+r.IntN(4))
				}
			}, fmt.Sprintf("192.0.2.%d", i)))
		}
		var p Planner
		if r.IntN(2) == 0 {
			p.Pool = pool(t, "192.0.2.2-192.0.2.6")
		}
		var svcs []*corev1.Service
		for i := range 1 + r.IntN(10) {
			s := svc(i, fmt.Sprintf("%d,%d", 80+r.IntN(4), 84+r.IntN(2)))
			if r.IntN(2) == 0 {
				has(fmt.Sprintf("192.0.2.%d", r.IntN(7)))(s)
			}
			svcs = append(svcs, s)
		}
		var before string
		for try := range 6 {
			got := p.Plan(nodes, svcs, nil)
			owner, now := map[slot]string{}, ""
			for _, s := range svcs {
				res := got[name(s)]
				s.Status.LoadBalancer.Ingress = ingress(s, res.Addrs)
				now += text(res) + "\n"
				for _, a := range res.Addrs {
					for _, k := range portsOf(s) {
						if o := owner[slot{a, k}]; o != "" {
							t.Fatalf("round %d: %s on %s is given to %s and %s", round, k, a, o, s.Name)
						}
						owner[slot{a, k}] = s.Name
					}
				}
			}
			if now == before {
				break
			}
			if try == 5 {
				t.Fatalf("round %d: never settles:\n%s\n%s", round, before, now)
			}
			before = now
		}
	}
}

// pool returns the pool of these ranges.
func pool(t *testing.T, ranges ...string) Pool {
	t.Helper()
	p := make(Pool, len(ranges))
	for i, r := range ranges {
		if err := p[i].UnmarshalText([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestPool(t *testing.T) {
	for _, bad := range []string{"", "x", "192.0.2.9-192.0.2.1", "192.0.2.1-fd00::1", "127.0.0.1", "0.0.0.0/0",
		"224.0.0.1", "fe80::1%eth0"} {
		if err := new(Range).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := pool(t, "192.0.2.0/24", "192.0.2.7").Check(); err == nil {
		t.Error("an overlap was taken")
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/28", "192.0.2.1-192.0.2.3", "fd00::/64", "::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := make(Pool, 1)
		if err := p[0].UnmarshalText([]byte(s)); err != nil {
			return
		}
		n := 0
		for a := range p.all(p[0].first.Is4()) {
			if n++; !p.has(a) || n > 100 {
				break
			}
		}
		if n == 0 {
			t.Fatalf("%q holds nothing", s)
		}
	})
}

// TestNodeIsBounded: of a Node that says as much as its object holds a little counts.
func TestNodeIsBounded(t *testing.T) {
	n := &corev1.Node{}
	var ports []string
	for i := range 10_000 {
		n.Status.Addresses = append(n.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", i/250, i%250)})
		ports = append(ports, fmt.Sprintf("%d/TCP", i+1))
	}
	n.Annotations = map[string]string{wellknown.HostPorts: strings.Join(ports, ",")}
	if got := nodeOf(n); len(got.addrs) != maxAddresses || len(got.held) != maxPorts {
		t.Errorf("%d addresses and %d ports are kept", len(got.addrs), len(got.held))
	}
}

// TestUnsupportedAddress: an address that only a node's own word supports, as a LAN host's, is offered when an
// administrator says that it is right.
func TestUnsupportedAddress(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
			{Type: corev1.NodeExternalIP, Address: "192.0.2.100"}},
	}}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "s"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 7000}}}}
	p := Planner{Supported: func(_ string, a netip.Addr) bool { return a.String() == "192.0.2.1" }}
	got := p.Plan([]*corev1.Node{n}, []*corev1.Service{s}, nil)[name(s)]
	if len(got.Addrs) != 1 || got.Addrs[0].String() != "192.0.2.1" || got.Reason != SomeNodes ||
		!strings.Contains(got.Message, "annotate node n umiak.io/confirmed-addresses=192.0.2.100") {
		t.Errorf("%+v", got)
	}
	n.Annotations = map[string]string{wellknown.ConfirmedAddresses: "192.0.2.9, 192.0.2.100"}
	if got := p.Plan([]*corev1.Node{n}, []*corev1.Service{s}, nil)[name(s)]; len(got.Addrs) != 2 ||
		got.Reason != Served {
		t.Errorf("confirmed: %+v", got)
	}
}

// TestDisputedAddress: an address that a Node says it has, and is another's, is in no Service's status by that Node,
// whichever comes first by name.
func TestDisputedAddress(t *testing.T) {
	victim := netip.MustParseAddr("192.0.2.1")
	for _, liar := range []string{"a", "z"} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: liar}, Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: victim.String()},
				{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}},
		}}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "s"},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 7000}}}}
		p := Planner{Disputed: func(node string, a netip.Addr) bool { return a == victim && node != "m" }}
		got := p.Plan([]*corev1.Node{n}, []*corev1.Service{s}, nil)[name(s)]
		if len(got.Addrs) != 1 || got.Addrs[0].String() != "192.0.2.2" {
			t.Errorf("%s: %v", liar, got)
		}
	}
}
