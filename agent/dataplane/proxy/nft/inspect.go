package nft

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Inspect returns for each element that is not in the kernel as it should be what is wrong with it.
func (t *Table) Inspect(elems []rules.Elem) (map[rules.Elem]string, error) {
	bySet := map[rules.Class]map[string]rules.Elem{}
	out := map[rules.Elem]string{}
	for _, e := range elems {
		if bySet[e.Class] == nil {
			bySet[e.Class] = map[string]rules.Elem{}
		}
		bySet[e.Class][e.Key] = e
		out[e] = "missing"
	}
	for class, want := range bySet {
		err := t.ReadSet(class.Spec(), func(key, end, val, comment string) error {
			e, ok := want[key+end]
			switch {
			case !ok:
			case val != e.Val && comment != "" && comment != clipped(e):
				out[e] = "belongs to " + comment
			case val != e.Val:
				out[e] = "leads to " + ruleset.Decode(t.cfg.Family, class.Spec().Val, val)
			default:
				delete(out, e)
			}
			return nil
		})
		if err != nil && !netfilter.IsNotFound(err) {
			if errors.Is(err, unix.EPERM) {
				err = netfilter.Explain(err)
			}
			return nil, err
		}
	}
	return out, nil
}

// Compare returns what a Sync would do, and does nothing.
func (t *Table) Compare(w Wanted) (Synced, error) {
	c, ok, err := t.Diff(desired{t.cfg, w})
	if err != nil || !ok {
		return Synced{Replaced: !ok}, err
	}
	return Synced{Added: len(c.Add), Deleted: len(c.Del),
		Repaired: len(c.AddSets) + len(c.DelSets) + len(c.SetChains) + len(c.DelChains)}, nil
}

// clipped returns the part of an element's comment that the kernel stores.
func clipped(e rules.Elem) string { return netfilter.Clip(ruleset.Elem{Comment: e.Comment}).Comment }
