package nft

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Table is our table of one family in the kernel.
type Table struct {
	netfilter.Table
	cfg    rules.Config
	digest map[string]uint64 // of each fixed chain
}

// Synced says what a Sync found and did.
type Synced struct {
	// Replaced says that the table was missing or not as this version of umiak makes it, and that it was
	// put there anew, in one step.
	Replaced bool
	// Added and Deleted are numbers of elements.
	Added, Deleted int
}

// NewTable prepares a table; nothing is sent yet.
func NewTable(conn *netfilter.Conn, cfg rules.Config) (*Table, error) {
	_, n := netfilter.TypeOf(cfg.Family, rules.Affinity()[0].Val)
	t := &Table{Table: netfilter.Table{Conn: conn, Family: cfg.Family, Name: rules.TableName, Words: n / 4}, cfg: cfg, digest: map[string]uint64{}}
	for _, c := range cfg.Layout() {
		t.digest[c.Name] = netfilter.Digest(c)
	}
	// What cannot be compiled should be known before there is anything to do.
	if err := t.layout(t.Batch(), nil); err != nil {
		return nil, err
	}
	return t, nil
}

// fixedSets are the sets that are always there.
func fixedSets() []rules.SetSpec {
	out := rules.Affinity()
	for id := range rules.NumSets {
		if !id.Classed() {
			out = append(out, id.Spec())
		}
	}
	return out
}

// change appends a change to a batch. Maps come before the rules that use them and go after those.
func (t *Table) change(b *netfilter.Batch, c rules.Change) error {
	for i, x := range c.AddClass {
		t.AddSet(b, uint32(1000+i), x.Spec())
	}
	if len(c.AddClass)+len(c.DelClass) > 0 {
		// The chains that have a rule for each class are few and short: they are written anew, which
		// needs no knowledge of the rules that are there.
		for _, ch := range t.cfg.Variable(c.Classes) {
			t.FlushRules(b, ch.Name)
			if err := t.AddRules(b, ch); err != nil {
				return err
			}
		}
	}
	e := t.Elems(b)
	for _, x := range c.Del {
		// The elements of a map that goes go with it.
		if !slices.Contains(c.DelClass, x.Class) {
			e.Delete(x.Spec(), x.Key)
		}
	}
	e.Close()
	for _, x := range c.DelClass {
		t.DeleteSet(b, x.Spec().Name)
	}
	for _, x := range c.Add {
		e.Add(x.Spec(), x.Key, x.Val, x.Comment)
	}
	e.Close()
	return nil
}

// Apply makes a change in one step, or in two: a packet looks into the maps of one source in turn, each as
// it is at that moment. What moves from one to another is put into the new one first and taken out of
// the old one then, so that it is found whenever a packet looks.
func (t *Table) Apply(ctx context.Context, c rules.Change) error {
	for _, step := range steps(c) {
		if step.Empty() {
			continue
		}
		if err := t.Table.Change(ctx, func(b *netfilter.Batch) error { return t.change(b, step) }); err != nil {
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

// Wanted is what a Sync wants to be there: a rules.Builder is one.
type Wanted interface {
	All() iter.Seq[rules.Elem]
	Want(class rules.Class, key string) (rules.Elem, bool)
	Classes() []rules.Class
}

// Sync makes the table as wanted, from whatever state.
func (t *Table) Sync(ctx context.Context, w Wanted) (Synced, error) {
	// The kernel may change between reading and writing; then the write is refused and the next try
	// sees the new state.
	for i := 0; ; i++ {
		s, err := t.sync(ctx, w)
		if err == nil || i == 2 || ctx.Err() != nil || errors.Is(err, unix.EPERM) {
			return s, err
		}
	}
}

func (t *Table) sync(ctx context.Context, w Wanted) (Synced, error) {
	same, classes, err := t.readFixed()
	if err != nil {
		return Synced{}, fmt.Errorf("read table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	if !same {
		return t.replace(ctx, w)
	}
	c, err := t.diff(w, classes)
	if netfilter.IsNotFound(err) {
		return t.replace(ctx, w)
	}
	if err != nil {
		return Synced{}, fmt.Errorf("read elements of table %s %s: %w", t.cfg.Family, rules.TableName, err)
	}
	if err := t.Apply(ctx, c); err != nil {
		// Something that cannot be repaired piece by piece.
		return t.replace(ctx, w)
	}
	return Synced{Added: len(c.Add), Deleted: len(c.Del)}, nil
}

// replace takes the table away and puts it there anew, in one step: no packet sees anything between.
func (t *Table) replace(ctx context.Context, w Wanted) (Synced, error) {
	c := rules.Change{Add: slices.Collect(w.All()), AddClass: w.Classes(), Classes: w.Classes()}
	// Set by set, so that few messages carry many elements.
	slices.SortFunc(c.Add, func(x, y rules.Elem) int {
		if x.Set != y.Set {
			return int(x.Set) - int(y.Set)
		}
		return int(x.N) - int(y.N)
	})
	b := t.Batch()
	t.Anew(b)
	if err := t.layout(b, c.AddClass); err != nil {
		return Synced{}, err
	}
	c.AddClass = nil // they are there, with the rules that use them
	if err := t.change(b, c); err != nil {
		return Synced{}, err
	}
	if err := t.Conn.Commit(ctx, b); err != nil {
		return Synced{}, netfilter.Explain(fmt.Errorf("write table %s %s: %w", t.cfg.Family, rules.TableName, err))
	}
	return Synced{Replaced: true, Added: len(c.Add)}, nil
}

// layout appends the fixed chains and sets, and those that follow from the classes.
func (t *Table) layout(b *netfilter.Batch, classes []rules.Class) error {
	for i, s := range fixedSets() {
		t.AddSet(b, uint32(i+1), s)
	}
	for i, c := range classes {
		t.AddSet(b, uint32(1000+i), c.Spec())
	}
	chains := append(t.cfg.Variable(classes), t.cfg.Layout()...)
	for _, c := range chains {
		t.AddChain(b, c)
	}
	for _, c := range chains {
		if err := t.AddRules(b, c); err != nil {
			return err
		}
	}
	return nil
}

// Forget deletes remembered clients for which stale says so, and returns how many those were. key is what
// the client calls. The change by which the endpoint left has been made before, so that no packet adds
// such an entry again.
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
