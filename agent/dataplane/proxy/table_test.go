package proxy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// fakeTable is a table without a kernel. It refuses what the kernel refuses: to delete what does not exist, to add what
// exists, and to delete maps in use. The zero value is an empty table.
type fakeTable struct {
	elems   map[fakeKey]rules.Elem
	classes map[rules.Class]bool
	// fail is called before every write and returns its error. May be nil.
	fail func() error
}

var _ table = (*fakeTable)(nil)

type fakeKey struct {
	class rules.Class
	key   string
}

// content returns the elements of the table.
func (t *fakeTable) content() []rules.Elem {
	return slices.Collect(maps.Values(t.elems))
}

// Apply makes a change in one step, or refuses all of it.
func (t *fakeTable) Apply(_ context.Context, c rules.Change) error {
	if c.Empty() {
		return nil
	}
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
func (t *fakeTable) Sync(_ context.Context, w nft.Wanted) (nft.Synced, error) {
	if t.fail != nil {
		if err := t.fail(); err != nil {
			return nft.Synced{}, err
		}
	}
	t.elems, t.classes = map[fakeKey]rules.Elem{}, map[rules.Class]bool{}
	for e := range w.All() {
		t.elems[fakeKey{e.Class, e.Key}] = e
	}
	for _, c := range w.Classes() {
		t.classes[c] = true
	}
	return nft.Synced{Replaced: true, Added: len(t.elems)}, nil
}

// Forget does nothing: no packets, no clients.
func (t *fakeTable) Forget(context.Context, func(key, endpoint string) bool) (int, error) {
	return 0, nil
}
