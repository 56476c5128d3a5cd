package rules

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

type (
	// Elem is an element of a map; its value is the name of a chain.
	Elem = ruleset.Elem
	// Change holds the additions and removals of one transaction.
	Change = ruleset.Change
)

// Forbids reports whether a change may forbid something that was allowed before.
func Forbids(c Change) bool {
	if len(c.SetChains)+len(c.Del) > 0 {
		return true
	}
	// A set that is deleted comes with rules that change, which is seen above. What is added allows, unless it is a
	// group of policies for a pod.
	return slices.ContainsFunc(c.Add, func(e Elem) bool { return e.Val != "" })
}

// store holds the desired state, and the state at the last flush.
type store struct {
	sets   map[string]*set
	chains map[string]*ruleset.Chain
	base   map[baseKey]*ruleset.Chain

	elemsWere  map[elemKey]string // missing for those that were not there
	setsWere   map[string]*ruleset.SetSpec
	chainsWere map[string]*ruleset.Chain
	baseWere   map[baseKey]*ruleset.Chain
}

type set struct {
	spec  ruleset.SetSpec
	elems map[string]string
	uses  int
	// ordered are the ranges by length of their keys, in order; nil until the first lookup.
	ordered map[int][]string
}

// ranges are the elements of a set of ranges whose ends have this length, in order.
func (s *set) ranges(length int) []string {
	if s.ordered == nil {
		s.ordered = map[int][]string{}
		for k := range s.elems {
			s.ordered[len(k)/2] = append(s.ordered[len(k)/2], k)
		}
		for _, all := range s.ordered {
			slices.Sort(all)
		}
	}
	return s.ordered[length]
}

type elemKey struct{ set, key string }

type baseKey struct {
	family ruleset.Family
	name   string
}

const absent = "\x00" // as a value: there was no such element

func newStore() store {
	return store{sets: map[string]*set{}, chains: map[string]*ruleset.Chain{}, base: map[baseKey]*ruleset.Chain{},
		elemsWere: map[elemKey]string{}, setsWere: map[string]*ruleset.SetSpec{},
		chainsWere: map[string]*ruleset.Chain{}, baseWere: map[baseKey]*ruleset.Chain{}}
}

func (s *store) hasSet(name string) bool { return s.sets[name] != nil }

// addSet counts one more user of a set and reports whether that is the first.
func (s *store) addSet(spec ruleset.SetSpec) bool {
	if x := s.sets[spec.Name]; x != nil {
		x.uses++
		return false
	}
	if _, ok := s.setsWere[spec.Name]; !ok {
		s.setsWere[spec.Name] = nil
	}
	s.sets[spec.Name] = &set{spec: spec, elems: map[string]string{}, uses: 1}
	return true
}

// deleteSet counts one user less; with the last one the set goes.
func (s *store) deleteSet(name string) {
	x := s.sets[name]
	if x.uses--; x.uses > 0 {
		return
	}
	if _, ok := s.setsWere[name]; !ok {
		s.setsWere[name] = &x.spec
	}
	for k := range x.elems {
		s.element(name, k, "", false)
	}
	delete(s.sets, name)
}

func (s *store) element(set, key, val string, add bool) {
	x := s.sets[set]
	was, there := x.elems[key]
	if there == add && was == val {
		return
	}
	k := elemKey{set, key}
	if _, recorded := s.elemsWere[k]; !recorded {
		if !there {
			was = absent
		}
		s.elemsWere[k] = was
	}
	x.ordered = nil
	if add {
		x.elems[key] = val
	} else {
		delete(x.elems, key)
	}
}

func (s *store) setChain(c ruleset.Chain) {
	s.recordChain(c.Name)
	s.chains[c.Name] = &c
}

func (s *store) deleteChain(name string) {
	s.recordChain(name)
	delete(s.chains, name)
}

// recordChain records the chain of a name as it was at the last flush, before it changes.
func (s *store) recordChain(name string) {
	if _, recorded := s.chainsWere[name]; !recorded {
		s.chainsWere[name] = s.chains[name]
	}
}

func (s *store) setBase(f ruleset.Family, c ruleset.Chain) {
	k := baseKey{f, c.Name}
	if _, recorded := s.baseWere[k]; !recorded {
		s.baseWere[k] = s.base[k]
	}
	s.base[k] = &c
}

// inFamily reports whether an element of a set belongs to tables of this family.
func inFamily(f ruleset.Family, spec ruleset.SetSpec, key string) bool {
	n := 0
	for _, x := range spec.Key {
		n += x.Len(f)
	}
	if spec.Ranges {
		n *= 2
	}
	return n == len(key)
}

func sameRules(a, b *ruleset.Chain) bool {
	return slices.EqualFunc(a.Rules, b.Rules, func(x, y ruleset.Rule) bool { return x.String() == y.String() })
}

// Flush returns what changed since the last Flush, for each family.
func (b *Builder) Flush() map[ruleset.Family]Change {
	s := &b.out
	out := map[ruleset.Family]Change{}
	for _, f := range b.families {
		c := Change{Specs: map[string]ruleset.SetSpec{}}
		for name, was := range s.setsWere {
			now := s.sets[name]
			switch {
			case was == nil && now != nil:
				c.AddSets = append(c.AddSets, now.spec)
			case was != nil && now == nil:
				c.DelSets = append(c.DelSets, *was)
			}
		}
		for k, was := range s.baseWere {
			if now := s.base[k]; k.family == f && (was == nil || !sameRules(was, now)) {
				c.SetChains = append(c.SetChains, *now)
			}
		}
		for name, was := range s.chainsWere {
			now := s.chains[name]
			switch {
			case was != nil && now == nil:
				c.DelChains = append(c.DelChains, name)
			case now != nil && (was == nil || !sameRules(was, now)):
				c.SetChains = append(c.SetChains, *now)
			}
		}
		for k, was := range s.elemsWere {
			x := s.sets[k.set]
			if x == nil {
				continue // went with its set, or came and went
			}
			if !inFamily(f, x.spec, k.key) {
				continue
			}
			now, is := x.elems[k.key]
			if is && now == was || !is && was == absent {
				continue
			}
			c.Specs[k.set] = x.spec
			if was != absent {
				c.Del = append(c.Del, Elem{Set: k.set, Key: k.key, Val: was})
			}
			if is {
				c.Add = append(c.Add, Elem{Set: k.set, Key: k.key, Val: now})
			}
		}
		order(&c)
		out[f] = c
	}
	s.elemsWere, s.setsWere = map[elemKey]string{}, map[string]*ruleset.SetSpec{}
	s.chainsWere, s.baseWere = map[string]*ruleset.Chain{}, map[baseKey]*ruleset.Chain{}
	return out
}

// order gives the change an order that does not depend on maps.
func order(c *Change) {
	bySpec := func(a, b ruleset.SetSpec) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(c.AddSets, bySpec)
	slices.SortFunc(c.DelSets, bySpec)
	slices.SortFunc(c.SetChains, func(a, b ruleset.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Del, Elem.Compare)
	slices.SortFunc(c.Add, Elem.Compare)
	slices.Sort(c.DelChains)
}

// Chains yields all wanted chains of a family.
func (b *Builder) Chains(f ruleset.Family) iter.Seq[ruleset.Chain] {
	return func(yield func(ruleset.Chain) bool) {
		for k, c := range b.out.base {
			if k.family == f && !yield(*c) {
				return
			}
		}
		for _, c := range b.out.chains {
			if !yield(*c) {
				return
			}
		}
	}
}

// Sets yields all wanted sets; they are the same in each family.
func (b *Builder) Sets() iter.Seq[ruleset.SetSpec] {
	return func(yield func(ruleset.SetSpec) bool) {
		for _, s := range b.out.sets {
			if !yield(s.spec) {
				return
			}
		}
	}
}

// Elems yields the wanted elements of a set in a family.
func (b *Builder) Elems(f ruleset.Family, set string) iter.Seq[Elem] {
	return func(yield func(Elem) bool) {
		x := b.out.sets[set]
		if x == nil {
			return
		}
		for k, v := range x.elems {
			if inFamily(f, x.spec, k) && !yield(Elem{Set: set, Key: k, Val: v}) {
				return
			}
		}
	}
}

// Elem returns an element's value, and whether it is wanted.
func (b *Builder) Elem(set, key string) (val string, ok bool) {
	if x := b.out.sets[set]; x != nil {
		val, ok = x.elems[key]
	}
	return val, ok
}

// SetNames are the names of all wanted sets, in order.
func (b *Builder) SetNames() []string { return slices.Sorted(maps.Keys(b.out.sets)) }
