package nft

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Inspect says of each element what is wrong with it in the kernel; nothing where it is as it should be.
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
			case val != e.Val && comment != "" && comment != clip(e).Comment:
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

// Compare says what a Sync would do, and does nothing.
func (t *Table) Compare(w Wanted) (Synced, error) {
	same, classes, err := t.readFixed()
	if err != nil || !same {
		return Synced{Replaced: !same}, err
	}
	c, err := t.diff(w, classes)
	return Synced{Added: len(c.Add) + len(c.AddClass), Deleted: len(c.Del) + len(c.DelClass)}, err
}
