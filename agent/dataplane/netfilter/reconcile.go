package netfilter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Desired is the desired content of a table.
type Desired interface {
	Chains() iter.Seq[ruleset.Chain]
	Sets() iter.Seq[ruleset.SetSpec]
	// Elems yields the elements of all sets, without those that packets add.
	Elems() iter.Seq[ruleset.Elem]
	// Finder returns a function that finds a set's element by its key.
	Finder(set string) func(key string) (ruleset.Elem, bool)
	// Keeps reports whether a chain that is not desired stays, because another part of umiak has made it.
	Keeps(chain string) bool
}

// Result describes what Reconcile has changed. The zero Result means that the table was as desired.
type Result struct {
	// Replaced states that the table was missing, or could not be repaired in place, and was written as a whole.
	Replaced bool
	// Added and Deleted count elements.
	Added, Deleted int
	// Chains counts the chains that were written or deleted, Sets the sets that were added or deleted.
	Chains, Sets int
}

// reconcileTries bounds how often Reconcile reads and writes again if the kernel's table changes in between.
const reconcileTries = 3

// resultOf returns the result of a change.
func resultOf(c ruleset.Change) Result {
	return Result{Added: len(c.Add), Deleted: len(c.Del),
		Chains: len(c.SetChains) + len(c.DelChains), Sets: len(c.AddSets) + len(c.DelSets)}
}

// Reconcile makes the table as desired, from whatever state it is in: it reads the table and sends the difference. An
// existing table changes in one step that packets see at once, except for sets of ranges; see Apply.
func (t *Table) Reconcile(ctx context.Context, want Desired) (Result, error) {
	for i := 1; ; i++ {
		r, err := t.reconcile(ctx, want)
		if err == nil || i == reconcileTries || ctx.Err() != nil || errors.Is(err, unix.EPERM) {
			return r, err
		}
	}
}

func (t *Table) reconcile(ctx context.Context, want Desired) (Result, error) {
	c, ok, err := t.Diff(want)
	if err != nil && !IsNotFound(err) {
		return Result{}, fmt.Errorf("read table %s %s: %w", t.Family, t.Name, err)
	}
	if !ok || err != nil {
		return t.replace(ctx, want, err)
	}
	if err := t.Apply(ctx, c); err != nil {
		return t.replace(ctx, want, err) // something that cannot be repaired piece by piece
	}
	return resultOf(c), nil
}

// replace writes the whole table, unless that would delete chains that stay. cause is why it cannot be repaired.
func (t *Table) replace(ctx context.Context, want Desired, cause error) (Result, error) {
	hooks, err := t.readHooks()
	if err != nil {
		return Result{}, errors.Join(cause, err)
	}
	for name := range hooks {
		if want.Keeps(name) {
			return Result{}, fmt.Errorf("repair table %s %s around chain %s: %w", t.Family, t.Name, name,
				cmp.Or(cause, errUnrepairable))
		}
	}
	return t.Replace(ctx, want)
}

var errUnrepairable = errors.New("a chain is at another hook")

// Diff reads the table and returns the change that makes it as desired. ok is false if no change does: the table is
// missing, a chain is at another hook, or a set is of another kind.
func (t *Table) Diff(want Desired) (c ruleset.Change, ok bool, err error) {
	chains, err := t.readChains()
	if err != nil || len(chains) == 0 {
		return c, false, err
	}
	for w := range want.Chains() {
		have := chains[w.Name]
		delete(chains, w.Name)
		switch {
		case have == nil || have.hooked(w) && !have.holds(w):
			c.SetChains = append(c.SetChains, w)
		case !have.hooked(w):
			return c, false, nil
		}
	}
	for name := range chains {
		if !want.Keeps(name) {
			c.DelChains = append(c.DelChains, name)
		}
	}
	there, ok, err := t.diffSets(want, &c)
	if err != nil || !ok {
		return c, false, err
	}
	if err := t.missing(want, there, &c); err != nil {
		return c, false, err
	}
	sortChange(&c)
	return c, true, nil
}

// sortChange gives the change an order that does not depend on maps.
func sortChange(c *ruleset.Change) {
	bySet := func(a, b ruleset.SetSpec) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(c.AddSets, bySet)
	slices.SortFunc(c.DelSets, bySet)
	slices.SortFunc(c.SetChains, func(a, b ruleset.Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(c.DelChains)
	slices.SortFunc(c.Del, ruleset.Elem.Compare)
	slices.SortFunc(c.Add, ruleset.Elem.Compare)
}

// diffSets compares the sets, and looks for elements that are not desired. It returns how many desired elements each
// set has. ok is false if a set is of another kind than desired.
func (t *Table) diffSets(want Desired, c *ruleset.Change) (there map[string]int, ok bool, err error) {
	sets, err := t.ReadSets()
	if err != nil {
		return nil, false, err
	}
	there, c.Specs = map[string]int{}, map[string]ruleset.SetSpec{}
	for spec := range want.Sets() {
		have, exists := sets[spec.Name]
		delete(sets, spec.Name)
		if exists && have != t.Shape(spec) {
			return nil, false, nil
		}
		c.Specs[spec.Name] = spec
		if !exists {
			c.AddSets = append(c.AddSets, spec)
			continue
		}
		if spec.Dynamic {
			continue
		}
		find := want.Finder(spec.Name)
		err := t.ReadSet(spec, func(key, end, val, comment string) error {
			have := ruleset.Elem{Set: spec.Name, Key: key + end, Val: val, Comment: comment}
			if w, ok := find(have.Key); ok && Clip(w) == have {
				there[spec.Name]++
			} else {
				c.Del = append(c.Del, have)
			}
			return nil
		})
		if err != nil {
			return nil, false, err
		}
	}
	for name := range sets {
		c.DelSets = append(c.DelSets, ruleset.SetSpec{Name: name})
	}
	return there, true, nil
}

// missing adds the desired elements that the kernel does not have. Mostly none is missing: then counting shows it.
func (t *Table) missing(want Desired, there map[string]int, c *ruleset.Change) error {
	missing := map[string]int{}
	for e := range want.Elems() {
		missing[e.Set]++
	}
	maps.DeleteFunc(missing, func(set string, n int) bool { return there[set] == n })
	if len(missing) == 0 {
		return nil
	}
	have := map[ruleset.Elem]bool{}
	for set := range missing {
		if there[set] == 0 {
			continue
		}
		err := t.ReadSet(c.Specs[set], func(key, end, val, comment string) error {
			have[ruleset.Elem{Set: set, Key: key + end, Val: val, Comment: comment}] = true
			return nil
		})
		if err != nil {
			return err
		}
	}
	for e := range want.Elems() {
		if missing[e.Set] > 0 && !have[Clip(e)] {
			c.Add = append(c.Add, e)
		}
	}
	return nil
}

// Clip returns the element with the part of its comment that the kernel stores.
func Clip(e ruleset.Elem) ruleset.Elem {
	e.Comment = e.Comment[:min(len(e.Comment), maxComment-1)]
	return e
}

// Apply makes a change in one step, or in two: the kernel lets packets see the new rules of a batch a moment before
// the ranges that came with it (it publishes a copy of such a set at the end of the commit), and what they allow would
// be dropped. So new sets of ranges are written before the rules that refer to them.
func (t *Table) Apply(ctx context.Context, c ruleset.Change) error {
	ranges, rest := c.Ranges()
	for _, step := range []ruleset.Change{ranges, rest} {
		if step.Empty() {
			continue
		}
		if err := t.Change(ctx, func(b *Batch) error { return t.append(b, step) }); err != nil {
			return err
		}
	}
	return nil
}

// firstSetID is the identifier of the first new set in a batch.
const firstSetID = 1

// append appends a change to a batch. What others refer to comes before them and goes after them.
func (t *Table) append(b *Batch, c ruleset.Change) error {
	for i, s := range c.AddSets {
		t.AddSet(b, uint32(firstSetID+i), s)
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
		e.Add(c.Specs[x.Set], x.Key, x.Val, x.Comment)
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

// Replace deletes the table, if it exists, and writes it as desired, in one step. Packets see nothing in between,
// except that ranges come a moment after the rules: a first packet may be lost, none passes that is forbidden.
func (t *Table) Replace(ctx context.Context, want Desired) (Result, error) {
	c := ruleset.Change{Specs: map[string]ruleset.SetSpec{}}
	for s := range want.Sets() {
		c.AddSets = append(c.AddSets, s)
		c.Specs[s.Name] = s
	}
	c.SetChains = slices.Collect(want.Chains())
	// Set by set, so that few messages carry many elements.
	bySet := map[string][]ruleset.Elem{}
	for e := range want.Elems() {
		bySet[e.Set] = append(bySet[e.Set], e)
	}
	for _, name := range slices.Sorted(maps.Keys(bySet)) {
		c.Add = append(c.Add, bySet[name]...)
	}
	b := t.Batch()
	t.Recreate(b)
	if err := t.append(b, c); err != nil {
		return Result{}, err
	}
	if err := t.Conn.Commit(ctx, b); err != nil {
		return Result{}, Explain(fmt.Errorf("write table %s %s: %w", t.Family, t.Name, err))
	}
	return Result{Replaced: true, Added: len(c.Add)}, nil
}

// Static returns a table that is described as a whole.
func Static(t ruleset.Table) Desired { return static{t} }

type static struct{ t ruleset.Table }

func (s static) Chains() iter.Seq[ruleset.Chain] { return slices.Values(s.t.Chains) }
func (s static) Sets() iter.Seq[ruleset.SetSpec] { return slices.Values(s.t.Sets) }
func (s static) Elems() iter.Seq[ruleset.Elem]   { return slices.Values(s.t.Elems) }
func (s static) Keeps(string) bool               { return false }

func (s static) Finder(set string) func(key string) (ruleset.Elem, bool) {
	elems := map[string]ruleset.Elem{}
	for _, e := range s.t.Elems {
		if e.Set == set {
			elems[e.Key] = e
		}
	}
	return func(key string) (ruleset.Elem, bool) {
		e, ok := elems[key]
		return e, ok
	}
}
