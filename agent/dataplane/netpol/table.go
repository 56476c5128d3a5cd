package netpol

import (
	"context"
	"iter"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// table is the policies' table of one family in the kernel.
type table struct{ netfilter.Table }

func newTable(conn *netfilter.Conn, f ruleset.Family) *table {
	return &table{netfilter.Table{Conn: conn, Family: f, Name: rules.TableName}}
}

// apply makes a change of the rules.
func (t *table) apply(ctx context.Context, c rules.Change) error { return t.Apply(ctx, c) }

// sync makes the table as the builder wants it, from whatever state it is in.
func (t *table) sync(ctx context.Context, w *rules.Builder) (netfilter.Result, error) {
	return t.Reconcile(ctx, desired{w, t.Family})
}

// desired is the desired table of one family, from a builder.
type desired struct {
	b      *rules.Builder
	family ruleset.Family
}

var _ netfilter.Desired = desired{}

func (d desired) Chains() iter.Seq[ruleset.Chain] { return d.b.Chains(d.family) }
func (d desired) Sets() iter.Seq[ruleset.SetSpec] { return d.b.Sets() }
func (d desired) Keeps(string) bool               { return false }

func (d desired) Elems() iter.Seq[ruleset.Elem] {
	return func(yield func(ruleset.Elem) bool) {
		for s := range d.b.Sets() {
			for e := range d.b.Elems(d.family, s.Name) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

func (d desired) Finder(set string) func(key string) (ruleset.Elem, bool) {
	return func(key string) (ruleset.Elem, bool) {
		val, ok := d.b.Elem(set, key)
		return ruleset.Elem{Set: set, Key: key, Val: val}, ok
	}
}
