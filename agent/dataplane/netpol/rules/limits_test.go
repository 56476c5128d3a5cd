package rules

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// size is what a node keeps for a builder's tables of all families.
func size(b *Builder) (rules, sets, elems int) {
	for _, c := range b.out.chains {
		rules += len(c.Rules)
	}
	for _, s := range b.out.sets {
		elems += len(s.elems)
	}
	return rules, len(b.out.sets), elems
}

// product is a policy with so many peers that select pods and so many named ports in one rule.
func product(peers, ports int) Policy {
	var r Rule
	for i := range peers {
		r.Peers = append(r.Peers, Peer{Pods: labels.SelectorFromSet(labels.Set{"app": fmt.Sprint("a", i)})})
	}
	for i := range ports {
		r.Ports = append(r.Ports, Port{Protocol: ruleset.TCP, Name: fmt.Sprint("p", i)})
	}
	return Policy{Namespace: "ns", Name: "product", Isolates: [2]bool{true, false}, Rules: [2][]Rule{{r}}}
}

// excepts is a policy for one block with n exceptions, one address each and none beside another.
func excepts(family ruleset.Family, n int) Policy {
	p := Peer{Block: netip.MustParsePrefix("0.0.0.0/0")}
	if family == ruleset.IPv6 {
		p.Block = netip.MustParsePrefix("::/0")
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range n {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.Uint32())))
		if family == ruleset.IPv6 {
			a = netip.AddrFrom16([16]byte(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, r.Uint64()),
				r.Uint64())))
		}
		p.Except = append(p.Except, netip.PrefixFrom(a, a.BitLen()))
	}
	return Policy{Namespace: "ns", Name: "excepts", Isolates: [2]bool{true, false},
		Rules: [2][]Rule{{{Peers: []Peer{p}}}}}
}

func TestPeersAndPortsAreNotMultiplied(t *testing.T) {
	const peers, ports = 400, 300
	b := NewBuilder(ruleset.IPv4)
	for i := range 50 {
		b.SetPod(Pod{Namespace: "ns", Name: fmt.Sprint("pod", i), Labels: labels.Set{"app": fmt.Sprint("a", i)},
			Local: true,
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 0, byte(i + 1)})},
			Ports: []NamedPort{{fmt.Sprint("p", i), ruleset.TCP, uint16(8000 + i)}}})
	}
	b.SetPolicy(product(peers, ports))
	if refused := b.Refused(); refused != nil {
		t.Fatal(refused)
	}
	if rules, sets, elems := size(b); rules > ports+5 || sets > ports+10 || elems > 10*50 {
		t.Errorf("%d peers and %d ports became %d rules, %d sets, %d elements", peers, ports, rules, sets, elems)
	}
	for _, c := range []struct {
		port uint16
		want bool
	}{{8001, true}, {8002, false}} {
		p := Packet{Src: netip.MustParseAddr("10.42.0.10"), Dst: netip.MustParseAddr("10.42.0.2"),
			Protocol: ruleset.TCP, Port: c.port}
		if got := b.Verdict(p); got != c.want {
			t.Errorf("%+v passes: %v", p, got)
		}
	}
	b.DeletePolicy("ns", "product")
	if len(b.selectors)+len(b.peers)+len(b.policies)+len(b.tenants) > 0 {
		t.Errorf("after the policy there are %d selectors, %d sets of peers, %d policies", len(b.selectors),
			len(b.peers), len(b.policies))
	}
	for _, p := range b.pods {
		if len(p.selectors) > 0 {
			t.Fatalf("pod %s still has %d selectors", p.Name, len(p.selectors))
		}
	}
}

// TestRangesAreThoseOfASimpleReference compares the sweep with one address after the other.
func TestRangesAreThoseOfASimpleReference(t *testing.T) {
	bases := []netip.Addr{netip.MustParseAddr("0.0.0.0"), netip.MustParseAddr("255.255.255.0"),
		netip.MustParseAddr("::"), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00")}
	split := 0
	for seed := range 2000 {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		prefix := func(base netip.Addr, longer int) netip.Prefix {
			raw := base.AsSlice()
			raw[len(raw)-1] = byte(r.IntN(256))
			a, _ := netip.AddrFromSlice(raw)
			return netip.PrefixFrom(a, a.BitLen()-8+min(8, longer+r.IntN(6)))
		}
		var blocks []Peer
		for range 1 + r.IntN(4) {
			p := Peer{Block: prefix(bases[r.IntN(len(bases))], 0).Masked()}
			for range r.IntN(8) {
				p.Except = append(p.Except, prefix(p.Block.Addr(), 2))
			}
			if r.IntN(4) == 0 {
				p.Except = append(p.Except, p.Block)
			}
			blocks = append(blocks, p)
		}
		allowed, barred := ranges(blocks)
		if len(barred) > 0 {
			split++
		}
		for _, all := range [][]span{allowed, barred} {
			for i, s := range all {
				if s.to.Less(s.from) || i > 0 && !all[i-1].to.Less(s.from) {
					t.Fatalf("seed %d: not in order: %v", seed, all)
				}
				if got, want := s.prefixes(), slowPrefixes(s); got != want {
					t.Fatalf("seed %d: %v takes %d prefixes, not %d", seed, s, want, got)
				}
			}
		}
		has := func(all []span, a netip.Addr) bool {
			for _, s := range all {
				if s.from.Is4() == a.Is4() && !a.Less(s.from) && !s.to.Less(a) {
					return true
				}
			}
			return false
		}
		for _, base := range bases {
			for i := range 256 {
				raw := base.AsSlice()
				raw[len(raw)-1] = byte(i)
				a, _ := netip.AddrFromSlice(raw)
				want := false
				for _, b := range blocks {
					in := b.Block.Contains(a)
					for _, e := range b.Except {
						in = in && !e.Contains(a)
					}
					want = want || in
				}
				if got := has(allowed, a) && !has(barred, a); got != want {
					t.Fatalf("seed %d: %s allowed: %v, should: %v\n%v\n%v without %v", seed, a, got, want, blocks,
						allowed, barred)
				}
			}
		}
	}
	if split < 100 || split > 1900 {
		t.Errorf("exceptions were a set of their own %d times of 2000: the test says little", split)
	}
}

// slowPrefixes takes the longest prefix at the beginning again and again.
func slowPrefixes(s span) int {
	n := 0
	for a := s.from; ; n++ {
		bits := a.BitLen()
		for bits > 0 {
			p := netip.PrefixFrom(a, bits-1)
			if p.Masked().Addr() != a || s.to.Less(ruleset.LastAddr(p)) {
				break
			}
			bits--
		}
		last := ruleset.LastAddr(netip.PrefixFrom(a, bits))
		if last == s.to {
			return n + 1
		}
		a = last.Next()
	}
}

func TestExceptionsTakeOnePrefixEach(t *testing.T) {
	for _, f := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		p := excepts(f, 5000)
		allowed, barred := ranges(p.Rules[Ingress][0].Peers)
		if n := prefixes(allowed) + prefixes(barred); n > 5001 {
			t.Errorf("%s: 5000 exceptions take %d prefixes", f, n)
		}
	}
}

func TestLegitimateLargePolicies(t *testing.T) {
	b := NewBuilder(ruleset.IPv4, ruleset.IPv6)
	var blocks []Peer
	for i := range 1000 {
		blocks = append(blocks, Peer{Block: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 0}),
			24)})
	}
	ports := []Port{{Protocol: ruleset.TCP, From: 80, To: 80}, {Protocol: ruleset.TCP, From: 443, To: 443},
		{Protocol: ruleset.UDP, From: 8000, To: 8100}}
	// In one rule, and in a rule for each.
	one := Policy{Namespace: "a", Name: "one", Isolates: [2]bool{false, true},
		Rules: [2][]Rule{Egress: {{Peers: blocks, Ports: ports}}}}
	each := Policy{Namespace: "b", Name: "each", Isolates: [2]bool{false, true}}
	for _, x := range blocks {
		each.Rules[Egress] = append(each.Rules[Egress], Rule{Peers: []Peer{x}, Ports: ports})
	}
	b.SetPolicy(one)
	b.SetPolicy(each)
	for _, f := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		p := excepts(f, 500)
		p.Name = fmt.Sprint(f)
		b.SetPolicy(p)
	}
	for i := range 200 { // a namespace with a policy for each of its services
		b.SetPolicy(Policy{Namespace: "c", Name: fmt.Sprint("p", i),
			Pods: labels.SelectorFromSet(labels.Set{"app": fmt.Sprint(i)}), Isolates: [2]bool{true, true},
			Rules: product(3, 1).Rules})
	}
	if refused := b.Refused(); refused != nil {
		t.Error(refused)
	}
}

func dumpOf(b *Builder) string {
	var w bytes.Buffer
	for _, f := range b.families {
		b.Dump(&w, f)
	}
	return w.String()
}

// two makes a builder with a pod in ns, one beside it, and one in another namespace, which a policy of its own allows
// to be called.
func two() (b *Builder, in, beside, other netip.Addr) {
	b = NewBuilder(ruleset.IPv4)
	in, beside, other = netip.MustParseAddr("10.42.0.1"), netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("10.42.0.3")
	b.SetPod(Pod{Namespace: "ns", Name: "in", Labels: labels.Set{"app": "a0"}, Addrs: []netip.Addr{in}, Local: true})
	b.SetPod(Pod{Namespace: "ns", Name: "beside", Labels: labels.Set{"app": "a1"}, Addrs: []netip.Addr{beside},
		Local: true})
	b.SetPod(Pod{Namespace: "other", Name: "other", Labels: labels.Set{"app": "a0"}, Addrs: []netip.Addr{other},
		Local: true})
	b.SetPolicy(Policy{Namespace: "other", Name: "open", Isolates: [2]bool{true, true}, Rules: [2][]Rule{{{}}, {{}}}})
	return b, in, beside, other
}

// TestAPolicyThatCostsTooMuchIsolates runs the attacks, as large as an API object can be.
func TestAPolicyThatCostsTooMuchIsolates(t *testing.T) {
	long := product(1, 0)
	words := make([]string, 20000)
	for i := range words {
		words[i] = fmt.Sprint("w", i)
	}
	req, err := labels.NewRequirement("app", "in", words)
	if err != nil {
		t.Fatal(err)
	}
	long.Pods = labels.NewSelector().Add(*req)
	for name, p := range map[string]Policy{
		"5,000 peers by 5,000 named ports": product(5000, 5000),
		"80,000 exceptions":                excepts(ruleset.IPv4, 80000),
		"80,000 exceptions of IPv6":        excepts(ruleset.IPv6, 80000),
		"a selector of 20,000 words":       long,
		"500,000 rules": {Namespace: "ns", Name: "p", Isolates: [2]bool{true, false},
			Rules: [2][]Rule{make([]Rule, 500000)}},
	} {
		t.Run(name, func(t *testing.T) {
			b, in, beside, other := two()
			before := dumpOf(b)
			if name != "a selector of 20,000 words" {
				p.Pods = labels.SelectorFromSet(labels.Set{"app": "a0"})
			}
			b.SetPolicy(p)
			refused := b.Refused()
			if len(refused) != 1 || !strings.Contains(refused[0], "ns/"+p.Name) ||
				!strings.Contains(refused[0], "at most") {
				t.Errorf("refused: %q", refused)
			}
			if rules, sets, elems := size(b); rules > 20 || sets > 10 || elems > 20 {
				t.Errorf("a node has %d rules, %d sets, %d elements", rules, sets, elems)
			}
			calls := func(from, to netip.Addr) bool {
				return b.Verdict(Packet{Src: from, Dst: to, Protocol: ruleset.TCP, Port: 80})
			}
			if calls(beside, in) {
				t.Error("the policy's own pod is not isolated")
			}
			if !calls(in, other) || !calls(other, beside) != (name == "a selector of 20,000 words") {
				t.Error("it concerns other pods, or not those that it should")
			}
			b.DeletePolicy("ns", p.Name)
			if after := dumpOf(b); after != before || b.Refused() != nil {
				t.Errorf("something of it stays:\n%s\nwas\n%s\n%q", after, before, b.Refused())
			}
		})
	}
}

// TestPoliciesOfANamespaceTogether: many policies cost no more than the bound of their namespace, whose pods are
// isolated beyond it; however it came to that, the tables are the same.
func TestPoliciesOfANamespaceTogether(t *testing.T) {
	policy := func(i, peers int) Policy {
		p := product(peers, 1)
		p.Name, p.Pods = fmt.Sprint("p", i), labels.SelectorFromSet(labels.Set{"app": fmt.Sprint("a", i)})
		return p
	}
	closed := 0
	for seed := range 6 {
		r := rand.New(rand.NewPCG(uint64(seed), 4))
		b, in, beside, other := two()
		has := map[int]Policy{}
		for range 60 {
			i := r.IntN(6)
			if r.IntN(3) == 0 {
				delete(has, i)
				b.DeletePolicy("ns", fmt.Sprint("p", i))
			} else {
				has[i] = policy(i, 1+r.IntN(1100))
				b.SetPolicy(has[i])
			}
			fresh, _, _, _ := two()
			total := 0
			for _, p := range has {
				fresh.SetPolicy(p)
				if n := len(p.Rules[Ingress][0].Peers) + 2; n <= mostOfPolicy.rules {
					total += n
				} else {
					total++
				}
			}
			if got, want := dumpOf(b), dumpOf(fresh); got != want {
				t.Fatalf("seed %d: after increments\n%.2000s\nmade anew\n%.2000s", seed, got, want)
			}
			over := total > mostOfNamespace.rules
			if got := b.tenants["ns"] != nil && b.tenants["ns"].closed; got != over {
				t.Fatalf("seed %d: %d rules: closed: %v", seed, total, got)
			}
			if !over {
				continue
			}
			closed++
			if refused := b.Refused(); len(refused) != 1 || !strings.Contains(refused[0], "namespace ns") {
				t.Fatalf("refused: %q", refused)
			}
			if rules, sets, _ := size(b); rules > 20 || sets > 10 {
				t.Fatalf("a node has %d rules and %d sets", rules, sets)
			}
			for _, x := range [][2]netip.Addr{{in, beside}, {beside, in}, {in, other}, {other, in}} {
				if b.Verdict(Packet{Src: x[0], Dst: x[1], Protocol: ruleset.TCP, Port: 80}) {
					t.Fatalf("%v is not isolated", x)
				}
			}
		}
	}
	if closed == 0 {
		t.Error("no namespace was ever closed")
	}
}

// BenchmarkLargest measures what is done under the lock, and before it, for policies that are as large as they may be.
func BenchmarkLargest(b *testing.B) {
	for name, p := range map[string]Policy{
		"product":     product(600, 399),
		"excepts":     excepts(ruleset.IPv4, 9990),
		"excepts-ip6": excepts(ruleset.IPv6, 9990),
	} {
		b.Run(name+"/before", func(b *testing.B) {
			for b.Loop() {
				Limit(p)
			}
		})
		b.Run(name+"/locked", func(b *testing.B) {
			bd := NewBuilder(ruleset.IPv4, ruleset.IPv6)
			for i := range 1000 {
				bd.SetPod(Pod{Namespace: "ns", Name: fmt.Sprint("pod", i),
					Labels: labels.Set{"app": fmt.Sprint("a", i)}, Local: i%10 == 0,
					Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(i >> 8), byte(i)})}})
			}
			now := Limit(p)
			if now.refused != "" {
				b.Fatal(now.refused)
			}
			for b.Loop() {
				bd.SetPolicy(now)
				bd.Flush()
				bd.DeletePolicy(now.Namespace, now.Name)
				bd.Flush()
			}
		})
	}
}
