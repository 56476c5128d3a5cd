package nft

import (
	"maps"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// readFixed reports whether the table is one that we would write for the classes that it has: sets as
// such, chains and rules. Elements are not looked at.
func (t *Table) readFixed() (same bool, classes []rules.Class, err error) {
	chains, err := t.ReadChains()
	if err != nil || len(chains) == 0 {
		return false, nil, err
	}
	classes, same, err = t.readClasses()
	if err != nil || !same {
		return false, nil, err
	}
	want := maps.Clone(t.digest)
	for _, c := range t.cfg.Variable(classes) {
		want[c.Name] = netfilter.Digest(c)
	}
	return maps.Equal(chains, want), classes, nil
}

// readClasses reads which classes there are, and whether all sets are as they should be.
func (t *Table) readClasses() (classes []rules.Class, same bool, err error) {
	got, err := t.ReadSets()
	if err != nil {
		return nil, false, err
	}
	for _, s := range fixedSets() {
		if g, ok := got[s.Name]; !ok || g != t.Shape(s) {
			return nil, false, nil
		}
		delete(got, s.Name)
	}
	for name, g := range got {
		c, ok := rules.ParseClass(name)
		if !ok || g != t.Shape(c.Spec()) {
			return nil, false, nil
		}
		classes = append(classes, c)
	}
	slices.SortFunc(classes, rules.Class.Compare)
	return classes, true, nil
}

// diff reads the elements and says what to change so that they are as wanted.
func (t *Table) diff(w Wanted, classes []rules.Class) (rules.Change, error) {
	c := rules.Change{Classes: w.Classes()}
	there := map[rules.Class]int{} // how many wanted elements of each class the kernel has
	read := func(class rules.Class, f func(have rules.Elem)) error {
		return t.ReadSet(class.Spec(), func(key, end, val, comment string) error {
			f(rules.Elem{Class: class, Key: key + end, Val: val, Comment: comment})
			return nil
		})
	}
	for id := range rules.NumSets {
		if !id.Classed() {
			classes = append(classes, rules.Class{Set: id})
		}
	}
	for _, class := range classes {
		if class.Set.Classed() && !slices.Contains(c.Classes, class) {
			c.DelClass = append(c.DelClass, class)
			continue
		}
		err := read(class, func(have rules.Elem) {
			if want, ok := w.Want(class, have.Key); ok && clip(want) == have {
				there[class]++
				return
			}
			c.Del = append(c.Del, have)
		})
		if err != nil {
			return c, err
		}
	}
	for _, class := range c.Classes {
		if !slices.Contains(classes, class) {
			c.AddClass = append(c.AddClass, class)
		}
	}
	// Mostly nothing is missing, so what is there was only counted.
	missing := map[rules.Class]int{}
	for e := range w.All() {
		missing[e.Class]++
	}
	maps.DeleteFunc(missing, func(class rules.Class, n int) bool { return there[class] == n })
	if len(missing) == 0 {
		return c, nil
	}
	have := map[rules.Elem]bool{}
	for class := range missing {
		if there[class] == 0 {
			continue
		}
		if err := read(class, func(e rules.Elem) { have[e] = true }); err != nil {
			return c, err
		}
	}
	for e := range w.All() {
		if missing[e.Class] > 0 && !have[clip(e)] {
			c.Add = append(c.Add, e)
		}
	}
	slices.SortFunc(c.Add, func(x, y rules.Elem) int { return x.Class.Compare(y.Class) })
	return c, nil
}

// clip shortens the comment to what the kernel keeps.
func clip(e rules.Elem) rules.Elem {
	e.Comment = e.Comment[:min(len(e.Comment), netfilter.MaxComment-1)]
	return e
}
