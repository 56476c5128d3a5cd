package netpol

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

var both = []ruleset.Family{ruleset.IPv4, ruleset.IPv6}

func dump(b *rules.Builder) string {
	var w bytes.Buffer
	for _, f := range both {
		b.Dump(&w, f)
	}
	return w.String()
}

// TestVerdictsAreThoseOfTheReference: whatever the cluster looks like and however it came to that, the
// rules say of every packet what the documentation says.
func TestVerdictsAreThoseOfTheReference(t *testing.T) {
	runs, steps := 60, 60
	if testing.Short() {
		runs = 5
	}
	passed, dropped := 0, 0
	for seed := range runs {
		r := chance{rand.New(rand.NewPCG(uint64(seed), 1))}
		c, b := newCluster(), rules.NewBuilder(both...)
		for step := range steps {
			c.step(r, b)
			for range 40 {
				p := r.packet()
				got, want := b.Verdict(p), c.allows(p)
				if got != want {
					t.Fatalf("seed %d step %d: %+v passes: %v, should: %v\n%s", seed, step, p, got, want, dump(b))
				}
				if got {
					passed++
				} else {
					dropped++
				}
			}
		}
		if grown, made := dump(b), dump(c.fresh()); grown != made {
			t.Fatalf("seed %d: after increments\n%s\nmade anew\n%s", seed, grown, made)
		}
	}
	if dropped < passed/20 {
		t.Fatalf("of %d packets only %d were dropped: the test says little", passed+dropped, dropped)
	}
	t.Logf("%d packets passed, %d were dropped", passed, dropped)
}

// TestChangesAddUp: what Flush says, made to a copy, gives what is wanted.
func TestChangesAddUp(t *testing.T) {
	for seed := range 30 {
		r := chance{rand.New(rand.NewPCG(uint64(seed), 2))}
		c, b := newCluster(), rules.NewBuilder(both...)
		copies := map[ruleset.Family]*shadow{}
		for _, f := range both {
			copies[f] = newShadow()
		}
		for range 40 {
			for range r.IntN(5) {
				c.step(r, b)
			}
			changes := b.Flush()
			for _, f := range both {
				copies[f].make(t, changes[f])
				copies[f].equals(t, b, f)
			}
		}
		for _, ch := range b.Flush() {
			if !ch.Empty() {
				t.Fatalf("seed %d: something is left: %+v", seed, ch)
			}
		}
	}
}

// shadow is a table without a kernel. It refuses what the kernel would.
type shadow struct {
	sets   map[string]map[string]string
	chains map[string]string
}

func newShadow() *shadow { return &shadow{map[string]map[string]string{}, map[string]string{}} }

func (s *shadow) make(t *testing.T, c rules.Change) {
	t.Helper()
	for _, x := range c.AddSets {
		if s.sets[x.Name] != nil {
			t.Fatalf("set %s is there", x.Name)
		}
		s.sets[x.Name] = map[string]string{}
	}
	for _, x := range c.SetChains {
		s.chains[x.Name] = text(x)
	}
	for _, e := range c.Del {
		if v, ok := s.sets[e.Set][e.Key]; !ok || v != e.Val {
			t.Fatalf("%+v is not there", e)
		}
		delete(s.sets[e.Set], e.Key)
	}
	for _, e := range c.Add {
		if _, ok := s.sets[e.Set][e.Key]; ok {
			t.Fatalf("%+v is there", e)
		}
		if e.Val != "" {
			if _, ok := s.chains[e.Val]; !ok {
				t.Fatalf("%+v: no such chain", e)
			}
		}
		s.sets[e.Set][e.Key] = e.Val
	}
	for _, x := range c.DelChains {
		if _, ok := s.chains[x]; !ok {
			t.Fatalf("chain %s is not there", x)
		}
		delete(s.chains, x)
	}
	for _, x := range c.DelSets {
		if s.sets[x.Name] == nil {
			t.Fatalf("set %s is not there", x.Name)
		}
		delete(s.sets, x.Name)
	}
}

func text(c ruleset.Chain) string {
	var w bytes.Buffer
	ruleset.DumpChains(&w, []ruleset.Chain{c})
	return w.String()
}

func (s *shadow) equals(t *testing.T, b *rules.Builder, f ruleset.Family) {
	t.Helper()
	want := newShadow()
	for c := range b.Chains(f) {
		want.chains[c.Name] = text(c)
	}
	for spec := range b.Sets() {
		want.sets[spec.Name] = map[string]string{}
		for e := range b.Elems(f, spec.Name) {
			want.sets[spec.Name][e.Key] = e.Val
		}
	}
	if !maps.Equal(s.chains, want.chains) {
		t.Fatalf("chains differ: have %v want %v", slices.Sorted(maps.Keys(s.chains)), slices.Sorted(maps.Keys(want.chains)))
	}
	if !maps.EqualFunc(s.sets, want.sets, maps.Equal) {
		t.Fatalf("sets differ:\nhave %q\nwant %q", s.sets, want.sets)
	}
}
