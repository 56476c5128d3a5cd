package netpol

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// table is our table of one family in the kernel.
type table struct{ netfilter.Table }

func newTable(conn *netfilter.Conn, f ruleset.Family) *table {
	return &table{netfilter.Table{Conn: conn, Family: f, Name: rules.TableName}}
}

// synced says what a sync found and did.
type synced struct {
	// replaced says that the table was missing or could not be repaired, and was put there anew.
	replaced       bool
	added, deleted int // elements
}

// change appends a change to a batch. What others refer to comes before them and goes after them.
func (t *table) change(b *netfilter.Batch, c rules.Change) error {
	for i, s := range c.AddSets {
		t.AddSet(b, uint32(1000+i), s)
	}
	for _, ch := range c.SetChains {
		t.AddChain(b, ch)
	}
	for _, ch := range c.SetChains {
		t.FlushRules(b, ch.Name)
		if err := t.AddRules(b, ch); err != nil {
			return err
		}
	}
	e := t.Elems(b)
	for _, x := range c.Del {
		e.Delete(c.Specs[x.Set], x.Key)
	}
	for _, x := range c.Add {
		e.Add(c.Specs[x.Set], x.Key, x.Val, "")
	}
	e.Close()
	for _, name := range c.DelChains {
		t.FlushRules(b, name)
	}
	for _, name := range c.DelChains {
		t.DeleteChain(b, name)
	}
	for _, s := range c.DelSets {
		t.DeleteSet(b, s.Name)
	}
	return nil
}

// apply makes a change in one step, or in two: the kernel lets packets see the new rules of a batch a moment before
// it lets them see ranges that came with it (it publishes a copy of such a set at the end of the commit), and what
// they allow would be dropped. So sets of ranges are there before rules refer to them.
func (t *table) apply(ctx context.Context, c rules.Change) error {
	ranges, rest := c.Ranges()
	for _, step := range []rules.Change{ranges, rest} {
		if step.Empty() {
			continue
		}
		if err := t.Change(ctx, func(b *netfilter.Batch) error { return t.change(b, step) }); err != nil {
			return err
		}
	}
	return nil
}

// sync makes the table as the builder wants it, from whatever state.
func (t *table) sync(ctx context.Context, w *rules.Builder) (synced, error) {
	// The kernel may change between reading and writing; then the write is refused and the next try
	// sees the new state.
	for i := 0; ; i++ {
		s, err := t.syncOnce(ctx, w)
		if err == nil || i == 2 || ctx.Err() != nil || errors.Is(err, unix.EPERM) {
			return s, err
		}
	}
}

func (t *table) syncOnce(ctx context.Context, w *rules.Builder) (synced, error) {
	c, ok, err := t.diff(w)
	if err != nil && !netfilter.IsNotFound(err) {
		return synced{}, fmt.Errorf("read table %s %s: %w", t.Family, t.Name, err)
	}
	if !ok || err != nil {
		return t.replace(ctx, w)
	}
	if err := t.apply(ctx, c); err != nil {
		// Something that cannot be repaired piece by piece.
		return t.replace(ctx, w)
	}
	return synced{added: len(c.Add), deleted: len(c.Del)}, nil
}

// diff reads the table and says what to change so that it is as wanted. Without ok it has to be replaced.
func (t *table) diff(w *rules.Builder) (c rules.Change, ok bool, err error) {
	chains, err := t.ReadChains()
	if err != nil || len(chains) == 0 {
		return c, false, err
	}
	for ch := range w.Chains(t.Family) {
		have, there := chains[ch.Name]
		delete(chains, ch.Name)
		if there && have == netfilter.Digest(ch) {
			continue
		}
		if rules.IsBase(ch.Name) {
			return c, false, nil // whether it is at its hook cannot be repaired
		}
		c.SetChains = append(c.SetChains, ch)
	}
	for name := range chains {
		if rules.IsBase(name) {
			return c, false, nil
		}
		c.DelChains = append(c.DelChains, name)
	}
	sets, err := t.ReadSets()
	if err != nil {
		return c, false, err
	}
	c.Specs = map[string]ruleset.SetSpec{}
	for spec := range w.Sets() {
		c.Specs[spec.Name] = spec
		have, there := sets[spec.Name]
		delete(sets, spec.Name)
		if there && have != t.Shape(spec) {
			return c, false, nil
		}
		if !there {
			c.AddSets = append(c.AddSets, spec)
			for e := range w.Elems(t.Family, spec.Name) {
				c.Add = append(c.Add, e)
			}
			continue
		}
		if err := t.diffSet(w, spec, &c); err != nil {
			return c, false, err
		}
	}
	for name := range sets {
		c.DelSets = append(c.DelSets, ruleset.SetSpec{Name: name})
	}
	byElem := func(l []rules.Elem) { slices.SortFunc(l, rules.Elem.Compare) }
	byElem(c.Add)
	byElem(c.Del)
	return c, true, nil
}

func (t *table) diffSet(w *rules.Builder, spec ruleset.SetSpec, c *rules.Change) error {
	there := map[string]bool{}
	err := t.ReadSet(spec, func(key, end, val, _ string) error {
		k := key + end
		if want, ok := w.Elem(spec.Name, k); ok && want == val {
			there[k] = true
		} else {
			c.Del = append(c.Del, rules.Elem{Set: spec.Name, Key: k, Val: val})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for e := range w.Elems(t.Family, spec.Name) {
		if !there[e.Key] {
			c.Add = append(c.Add, e)
		}
	}
	return nil
}

// replace takes the table away and puts it there anew, in one step: no packet sees anything between, but for what
// is said of ranges at apply. Better that a first packet is lost than that for a moment nothing is forbidden.
func (t *table) replace(ctx context.Context, w *rules.Builder) (synced, error) {
	c := rules.Change{Specs: map[string]ruleset.SetSpec{}}
	for spec := range w.Sets() {
		c.AddSets = append(c.AddSets, spec)
		c.Specs[spec.Name] = spec
		for e := range w.Elems(t.Family, spec.Name) {
			c.Add = append(c.Add, e)
		}
	}
	for ch := range w.Chains(t.Family) {
		c.SetChains = append(c.SetChains, ch)
	}
	slices.SortFunc(c.SetChains, func(a, b ruleset.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(c.Add, rules.Elem.Compare) // exceptions of blocks are there before the blocks
	b := t.Batch()
	t.Anew(b)
	if err := t.change(b, c); err != nil {
		return synced{}, err
	}
	if err := t.Conn.Commit(ctx, b); err != nil {
		return synced{}, netfilter.Explain(fmt.Errorf("write table %s %s: %w", t.Family, t.Name, err))
	}
	return synced{replaced: true, added: len(c.Add)}, nil
}
