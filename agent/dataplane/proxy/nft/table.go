package nft

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Table is the proxy's table of one family in the kernel.
type Table struct {
	netfilter.Table
	cfg rules.Config
}

// Synced describes what a Sync has changed. The zero Synced means that the table was as desired.
type Synced struct {
	// Replaced states that the table was missing, or could not be repaired in place, and was written as a whole.
	Replaced bool
	// Added and Deleted count elements.
	Added, Deleted int
	// Repaired counts chains and sets that were written or deleted.
	Repaired int
}

// NewTable prepares a table; nothing is sent yet.
func NewTable(conn *netfilter.Conn, cfg rules.Config) (*Table, error) {
	_, n := netfilter.TypeOf(cfg.Family, rules.Affinity()[0].Val)
	t := &Table{Table: netfilter.Table{Conn: conn, Family: cfg.Family, Name: rules.TableName, Words: n / 4}, cfg: cfg}
	// What cannot be compiled is an error before there is anything to do.
	for _, c := range slices.Concat(cfg.Layout(), cfg.Variable(nil)) {
		if err := t.AddRules(t.Batch(), c); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// fixedSets returns the sets that are always there.
func fixedSets() []rules.SetSpec {
	out := rules.Affinity()
	for id := range rules.NumSets {
		if !id.Classed() {
			out = append(out, id.Spec())
		}
	}
	return out
}

// change returns a change of elements and classes as a change of the table. The chains that have a rule for each class
// are few and short: they are written as a whole, which needs no knowledge of the rules that they have.
func (t *Table) change(c rules.Change) ruleset.Change {
	out := ruleset.Change{Specs: map[string]ruleset.SetSpec{}}
	for _, x := range c.AddClass {
		out.AddSets = append(out.AddSets, x.Spec())
	}
	if len(c.AddClass)+len(c.DelClass) > 0 {
		out.SetChains = t.cfg.Variable(c.Classes)
	}
	n := namer{}
	for _, x := range c.Del {
		// The elements of a map are deleted with it.
		if !slices.Contains(c.DelClass, x.Class) {
			out.Del = append(out.Del, n.elem(x))
		}
	}
	for _, x := range c.Add {
		out.Add = append(out.Add, n.elem(x))
	}
	for _, x := range c.DelClass {
		out.DelSets = append(out.DelSets, x.Spec())
	}
	for _, spec := range n {
		out.Specs[spec.Name] = spec
	}
	return out
}

// namer finds the sets of elements.
type namer map[rules.Class]rules.SetSpec

func (n namer) elem(e rules.Elem) ruleset.Elem {
	spec, ok := n[e.Class]
	if !ok {
		spec = e.Spec()
		n[e.Class] = spec
	}
	return ruleset.Elem{Set: spec.Name, Key: e.Key, Val: e.Val, Comment: e.Comment}
}

// Apply makes a change in one step, or in two: a packet looks into the maps of one source in turn, each as it is at
// that moment. What moves from one map to another is put into the new one first and deleted from the old one in a
// second step, so that it is found whenever a packet looks.
func (t *Table) Apply(ctx context.Context, c rules.Change) error {
	for _, step := range steps(c) {
		if step.Empty() {
			continue
		}
		if err := t.Table.Apply(ctx, t.change(step)); err != nil {
			return err
		}
	}
	return nil
}

// steps splits a change in which something moves between the maps of a source.
func steps(c rules.Change) []rules.Change {
	type place struct {
		set rules.SetID
		key string // without the slot
	}
	at := func(e rules.Elem) place { return place{e.Set, e.Key[:max(0, len(e.Key)-4)]} }
	comes := map[place]uint32{}
	for _, e := range c.Add {
		if e.Set < rules.NumSources {
			comes[at(e)] = e.N
		}
	}
	first, then := c, rules.Change{DelClass: c.DelClass, Classes: c.Classes}
	first.Del, first.DelClass = nil, nil
	for _, e := range c.Del {
		if n, moves := comes[at(e)]; e.Set < rules.NumSources && moves && n != e.N {
			then.Del = append(then.Del, e)
		} else {
			first.Del = append(first.Del, e)
		}
	}
	if len(then.Del) == 0 {
		return []rules.Change{c}
	}
	if len(c.AddClass) > 0 {
		first.Classes = append(slices.Clone(c.Classes), c.DelClass...)
		slices.SortFunc(first.Classes, rules.Class.Compare)
	}
	return []rules.Change{first, then}
}

// Wanted is the desired content of a table: a rules.Builder is one.
type Wanted interface {
	All() iter.Seq[rules.Elem]
	Want(class rules.Class, key string) (rules.Elem, bool)
	Classes() []rules.Class
}

// desired is the whole table of a Wanted.
type desired struct {
	cfg rules.Config
	Wanted
}

var _ netfilter.Desired = desired{}

func (d desired) Chains() iter.Seq[ruleset.Chain] {
	return slices.Values(slices.Concat(d.cfg.Variable(d.Classes()), d.cfg.Layout()))
}

func (d desired) Sets() iter.Seq[ruleset.SetSpec] {
	sets := fixedSets()
	for _, c := range d.Classes() {
		sets = append(sets, c.Spec())
	}
	return slices.Values(sets)
}

func (d desired) Elems() iter.Seq[ruleset.Elem] {
	return func(yield func(ruleset.Elem) bool) {
		n := namer{}
		for e := range d.All() {
			if !yield(n.elem(e)) {
				return
			}
		}
	}
}

func (d desired) Finder(set string) func(key string) (ruleset.Elem, bool) {
	class, _ := rules.ParseClass(set)
	for id := range rules.NumSets {
		if !id.Classed() && id.Spec().Name == set {
			class = rules.Class{Set: id}
		}
	}
	return func(key string) (ruleset.Elem, bool) {
		e, ok := d.Want(class, key)
		return ruleset.Elem{Set: set, Key: e.Key, Val: e.Val, Comment: e.Comment}, ok
	}
}

func (d desired) Keeps(string) bool { return false }

// Sync makes the table as wanted, from whatever state it is in.
func (t *Table) Sync(ctx context.Context, w Wanted) (Synced, error) {
	r, err := t.Reconcile(ctx, desired{t.cfg, w})
	return Synced{Replaced: r.Replaced, Added: r.Added, Deleted: r.Deleted, Repaired: r.Chains + r.Sets}, err
}

// Forget deletes the remembered clients that stale selects, and returns how many those were. key is the address,
// protocol and port that the client calls. The change by which the endpoint left has been made before, so that no
// packet adds such an entry again.
func (t *Table) Forget(ctx context.Context, stale func(key, endpoint string) bool) (int, error) {
	n := 0
	for _, spec := range rules.Affinity() {
		m, err := t.forgetIn(ctx, spec, stale)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (t *Table) forgetIn(ctx context.Context, spec rules.SetSpec, stale func(key, endpoint string) bool) (int, error) {
	client := rules.Addr.Len(t.cfg.Family)
	var keys []string
	err := t.ReadSet(spec, func(key, _, val, _ string) error {
		if stale(key[client:], val) {
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read clients with affinity: %w", err)
	}
	n := 0
	for len(keys) > 0 {
		chunk := keys[:min(len(keys), 512)]
		if err := t.forget(ctx, spec, chunk); err == nil {
			n += len(chunk)
		} else if !netfilter.IsNotFound(err) {
			return n, err
		} else {
			// One of them has timed out meanwhile, and with it the whole batch was refused.
			for _, k := range chunk {
				if err := t.forget(ctx, spec, []string{k}); err == nil {
					n++
				} else if !netfilter.IsNotFound(err) {
					return n, err
				}
			}
		}
		keys = keys[len(chunk):]
	}
	return n, nil
}

func (t *Table) forget(ctx context.Context, spec rules.SetSpec, keys []string) error {
	b := t.Batch()
	e := t.Elems(b)
	for _, k := range keys {
		e.Delete(spec, k)
	}
	e.Close()
	return t.Conn.Commit(ctx, b)
}
