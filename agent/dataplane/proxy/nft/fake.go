package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Fake is a table without a kernel. It refuses what the kernel would: to delete what is not there, to
// add what is, and maps in use. The zero value is an empty table.
type Fake struct {
	mu      sync.Mutex
	elems   map[fakeKey]rules.Elem
	classes map[rules.Class]bool
	// fail is asked before every write; what it returns is the write's error.
	fail          func() error
	applies, full int
}

type fakeKey struct {
	class rules.Class
	key   string
}

// FailWith makes every write ask f first.
func (t *Fake) FailWith(f func() error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fail = f
}

// Flush empties the table, as somebody else might.
func (t *Fake) Flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.elems, t.classes = nil, nil
}

// Writes returns how many changes and how many full syncs there were.
func (t *Fake) Writes() (changes, full int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.applies, t.full
}

// Elems returns what is in the table.
func (t *Fake) Elems() []rules.Elem {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.elems))
}

// Apply makes a change in one step, or refuses all of it.
func (t *Fake) Apply(_ context.Context, c rules.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Empty() {
		return nil
	}
	t.applies++
	if t.fail != nil {
		if err := t.fail(); err != nil {
			return err
		}
	}
	elems, classes := maps.Clone(t.elems), maps.Clone(t.classes)
	if elems == nil {
		elems, classes = map[fakeKey]rules.Elem{}, map[rules.Class]bool{}
	}
	for _, x := range c.AddClass {
		if classes[x] {
			return fmt.Errorf("map %s is there", x.Spec().Name)
		}
		classes[x] = true
	}
	for _, e := range c.Del {
		k := fakeKey{e.Class, e.Key}
		if elems[k] != e {
			return fmt.Errorf("element of %s is not there", e.Spec().Name)
		}
		delete(elems, k)
	}
	for _, x := range c.DelClass {
		if !classes[x] {
			return fmt.Errorf("map %s is not there", x.Spec().Name)
		}
		delete(classes, x)
		maps.DeleteFunc(elems, func(k fakeKey, _ rules.Elem) bool { return k.class == x })
	}
	for _, e := range c.Add {
		k := fakeKey{e.Class, e.Key}
		if _, there := elems[k]; there {
			return fmt.Errorf("element of %s is there", e.Spec().Name)
		}
		if e.Set.Classed() && !classes[e.Class] {
			return fmt.Errorf("map %s is not there", e.Spec().Name)
		}
		elems[k] = e
	}
	if len(c.AddClass)+len(c.DelClass) > 0 && !slices.Equal(slices.SortedFunc(maps.Keys(classes), rules.Class.Compare),
		c.Classes) {
		return errors.New("rules are for other maps than there are")
	}
	t.elems, t.classes = elems, classes
	return nil
}

// Sync makes the table as wanted.
func (t *Fake) Sync(_ context.Context, w Wanted) (Synced, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.full++
	if t.fail != nil {
		if err := t.fail(); err != nil {
			return Synced{}, err
		}
	}
	t.elems, t.classes = map[fakeKey]rules.Elem{}, map[rules.Class]bool{}
	for e := range w.All() {
		t.elems[fakeKey{e.Class, e.Key}] = e
	}
	for _, c := range w.Classes() {
		t.classes[c] = true
	}
	return Synced{Replaced: true, Added: len(t.elems)}, nil
}

// Forget does nothing: no packets, no clients.
func (t *Fake) Forget(context.Context, func(key, endpoint string) bool) (int, error) { return 0, nil }
