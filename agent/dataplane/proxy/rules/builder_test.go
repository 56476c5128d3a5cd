package rules_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/rulestest"
)

func dump(b *rules.Builder) string {
	var w bytes.Buffer
	b.DumpElems(&w)
	fmt.Fprintln(&w, b.Classes())
	return w.String()
}

// mirror applies changes as a kernel would, strictly.
type mirror struct {
	elems   map[string]rules.Elem
	classes map[rules.Class]bool
}

func newMirror() *mirror {
	return &mirror{map[string]rules.Elem{}, map[rules.Class]bool{}}
}

func id(e rules.Elem) string { return fmt.Sprint(e.Class) + e.Key }

func (m *mirror) apply(c rules.Change) error {
	for _, x := range c.AddClass {
		if m.classes[x] {
			return fmt.Errorf("class %v added twice", x)
		}
		m.classes[x] = true
	}
	for _, e := range c.Del {
		if m.elems[id(e)] != e {
			return fmt.Errorf("delete of %+v, which is %+v", e, m.elems[id(e)])
		}
		delete(m.elems, id(e))
	}
	for _, x := range c.DelClass {
		if !m.classes[x] {
			return fmt.Errorf("class %v deleted, was not there", x)
		}
		delete(m.classes, x)
		for _, e := range m.elems {
			if e.Class == x {
				return fmt.Errorf("class %v deleted with %+v in it", x, e)
			}
		}
	}
	for _, e := range c.Add {
		if old, ok := m.elems[id(e)]; ok {
			return fmt.Errorf("add of %+v, there is %+v", e, old)
		}
		if e.Set.Classed() && !m.classes[e.Class] {
			return fmt.Errorf("add of %+v to a class that is not there", e)
		}
		m.elems[id(e)] = e
	}
	if len(c.AddClass)+len(c.DelClass) > 0 && !slices.Equal(c.Classes,
		slices.SortedFunc(maps.Keys(m.classes), rules.Class.Compare)) {
		return fmt.Errorf("classes %v, want %v", c.Classes, m.classes)
	}
	return nil
}

func (m *mirror) equals(b *rules.Builder) error {
	n := 0
	for e := range b.All() {
		n++
		if m.elems[id(e)] != e {
			return fmt.Errorf("%+v is %+v", e, m.elems[id(e)])
		}
		if w, ok := b.Want(e.Class, e.Key); !ok || w != e {
			return fmt.Errorf("Want gives %+v for %+v", w, e)
		}
	}
	if n != len(m.elems) {
		return fmt.Errorf("%d elements, want %d", len(m.elems), n)
	}
	return nil
}

// run makes random changes and checks after each flush that what changed, applied to what was, is what a
// builder that sees only the end would build.
func run(t *testing.T, seed uint64, steps int) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	f := []rules.Family{rules.IPv4, rules.IPv6}[r.IntN(2)]
	cfg := rules.Config{Family: f}
	b := rules.NewBuilder(cfg)
	m := newMirror()
	now := map[string]rules.ServicePort{}
	for step := range steps {
		for range 1 + r.IntN(5) {
			s := rulestest.Random(r, f, r.IntN(30))
			if r.IntN(4) == 0 {
				b.Delete(s.Name)
				delete(now, s.Name)
			} else {
				b.Set(s)
				now[s.Name] = s
			}
		}
		if err := m.apply(b.Flush()); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
		if err := m.equals(b); err != nil {
			t.Fatalf("seed %d, step %d: kernel would differ: %v", seed, step, err)
		}
		fresh := rules.NewBuilder(cfg)
		for _, s := range now { // in any order
			fresh.Set(s)
		}
		if dump(fresh) != dump(b) {
			t.Fatalf("seed %d, step %d: from scratch:\n%s\nby increments:\n%s", seed, step, dump(fresh), dump(b))
		}
		if fresh.Endpoints() != b.Endpoints() || fresh.Len() != len(now) {
			t.Fatalf("seed %d, step %d: counts differ", seed, step)
		}
	}
	for n := range now {
		b.Delete(n)
	}
	if err := m.apply(b.Flush()); err != nil || len(m.elems)+len(m.classes) != 0 || dump(b) != "[]\n" ||
		b.Endpoints() != 0 {
		t.Fatalf("seed %d: something stays: %v %v", seed, err, m)
	}
}

func TestIncrementsEqualAFreshBuild(t *testing.T) {
	for seed := range uint64(60) {
		run(t, seed, 40)
	}
}

func FuzzIncrements(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) { run(t, seed, 30) })
}

func svc() rules.ServicePort {
	return rules.ServicePort{Name: "ns/a", Service: "ns/a", Protocol: rules.TCP,
		ClusterIP: netip.MustParseAddr("10.43.0.1"), Port: 80,
		Cluster: []netip.AddrPort{netip.MustParseAddrPort("10.42.0.2:8080"), netip.MustParseAddrPort("10.42.0.1:8080")}}
}

// TestAChangeIsSmall is the promise that a change touches only what changed.
func TestAChangeIsSmall(t *testing.T) {
	b := rules.NewBuilder(rules.Config{Family: rules.IPv4})
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 1000 {
		b.Set(rulestest.Random(r, rules.IPv4, i))
	}
	b.Set(svc())
	b.Flush()
	same := svc()
	slices.Reverse(same.Cluster)
	b.Set(same)
	if c := b.Flush(); !c.Empty() || c.Forget {
		t.Fatalf("the order of endpoints is a change: %+v", c)
	}
	other := svc()
	other.Cluster[0] = netip.MustParseAddrPort("10.42.0.3:8080")
	b.Set(other)
	if c := b.Flush(); len(c.Del) != 1 || len(c.Add) != 1 || len(c.AddClass)+len(c.DelClass) != 0 {
		t.Fatalf("one endpoint: %+v", c)
	}
}

func TestOddInput(t *testing.T) {
	b := rules.NewBuilder(rules.Config{Family: rules.IPv4})
	s := svc()
	six := netip.MustParseAddr("fd00::1")
	s.ExternalIPs = []netip.Addr{s.ClusterIP, six, {}}
	s.LoadBalancerIPs = []netip.Addr{s.ClusterIP, netip.MustParseAddr("::ffff:1.2.3.4"), netip.MustParseAddr("1.2.3.4"),
		netip.MustParseAddr("1.2.3.4")}
	s.SourceRanges = []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"),
		netip.MustParsePrefix("fd00::/8")}
	s.Cluster = append(s.Cluster, s.Cluster[0], netip.AddrPort{}, netip.AddrPortFrom(six, 1),
		netip.MustParseAddrPort("10.42.0.9:0"))
	b.Set(s)
	b.Delete("not there")
	if got, _ := b.Get("ns/a"); len(got.Cluster) != 2 || len(got.ExternalIPs) != 0 || len(got.LoadBalancerIPs) != 1 ||
		len(got.SourceRanges) != 1 {
		t.Fatalf("%+v", got)
	}
	if err := newMirror().apply(b.Flush()); err != nil {
		t.Fatal(err)
	}
}

func TestStale(t *testing.T) {
	b := rules.NewBuilder(rules.Config{Family: rules.IPv4})
	s := svc()
	s.Affinity, s.NodePort = 10, 30000
	b.Set(s)
	b.Flush()
	key := func(addr string, port uint16) string {
		a := netip.MustParseAddr(addr).As4()
		return string(append(a[:], rules.TCP, 0, 0, 0, byte(port>>8), byte(port), 0, 0))
	}
	there, gone := "\x0a\x2a\x00\x01\x1f\x90\x00\x00", "\x0a\x2a\x00\x03\x1f\x90\x00\x00"
	for _, k := range []string{key("10.43.0.1", 80), key("192.0.2.1", 30000)} {
		if b.Stale(k, there) || !b.Stale(k, gone) {
			t.Errorf("%x: wrong", k)
		}
	}
	if !b.Stale(key("10.43.0.1", 81), there) {
		t.Error("another port")
	}
	s.Affinity = 0
	b.Set(s)
	if c := b.Flush(); !c.Forget || !b.Stale(key("10.43.0.1", 80), there) {
		t.Error("affinity was taken away")
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := rand.New(rand.NewPCG(1, 1))
			list := make([]rules.ServicePort, n)
			for i := range list {
				list[i] = rulestest.Random(r, rules.IPv4, i)
			}
			b.ReportAllocs()
			for b.Loop() {
				bd := rules.NewBuilder(rules.Config{Family: rules.IPv4})
				for _, s := range list {
					bd.Set(s)
				}
				bd.Flush()
			}
		})
	}
}
