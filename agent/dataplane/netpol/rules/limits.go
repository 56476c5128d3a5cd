package rules

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// cost is what a policy costs a node. All work and memory that a policy causes grows in proportion to one of these, or
// to one of these times the number of pods.
type cost struct {
	// rules counts rules, peers that select pods, and ports that have names: each may be a rule or a set of the
	// kernel, and is matched against pods. A policy counts for one at least.
	rules int
	// entries counts everything that a policy lists: rules, peers, prefixes of blocks and exceptions, ports, and the
	// words of selectors. A range that no prefix covers counts for the prefixes that it takes.
	entries int
}

// What policies may cost. Who may write policies in one namespace must not be able to exhaust every node.
var (
	mostOfPolicy    = cost{rules: 1000, entries: 10000}
	mostOfNamespace = cost{rules: 2000, entries: 20000}
)

func (c cost) plus(d cost) cost      { return cost{c.rules + d.rules, c.entries + d.entries} }
func (c cost) minus(d cost) cost     { return cost{c.rules - d.rules, c.entries - d.entries} }
func (c cost) atMost(most cost) bool { return c.rules <= most.rules && c.entries <= most.entries }

// exceeds describes which bound a cost exceeds, empty for none.
func (c cost) exceeds(most cost) string {
	if c.rules > most.rules {
		return fmt.Sprintf("%d rules, pod selectors of peers and named ports, of at most %d", c.rules, most.rules)
	}
	return fmt.Sprintf("%d entries (peers, exceptions, ports, words of selectors), of at most %d", c.entries,
		most.entries)
}

// Limit returns a policy that is ready for SetPolicy, which needs little time for it then. One that exceeds what it
// may cost isolates its pods and allows nothing; if its selector is what is too long, it isolates all pods of its
// namespace.
func Limit(p Policy) Policy {
	if p.Pods == nil {
		p.Pods = labels.Everything()
	}
	p.cost, p.refused = costOf(p), ""
	if p.cost.atMost(mostOfPolicy) {
		return p
	}
	p.refused = fmt.Sprintf("NetworkPolicy %s/%s allows nothing: it has %s", p.Namespace, p.Name,
		p.cost.exceeds(mostOfPolicy))
	p.Rules = [2][]Rule{}
	if selectorCost(p.Pods) > mostOfPolicy.entries/10 {
		p.Pods = labels.Everything()
	}
	p.cost = costOf(p)
	return p
}

func costOf(p Policy) cost {
	c := cost{entries: 1 + selectorCost(p.Pods)}
	for _, rules := range p.Rules {
		for _, r := range rules {
			c = c.plus(cost{rules: 1, entries: 1})
			for _, x := range r.Peers {
				if x.Block.IsValid() {
					c.entries += 1 + len(x.Except)
				} else {
					c = c.plus(cost{rules: 1, entries: 1 + selectorCost(x.Namespaces) + selectorCost(x.Pods)})
				}
			}
			c.entries += len(r.Ports)
			for _, x := range r.Ports {
				if x.Name != "" {
					c.rules++
				}
			}
		}
	}
	c.rules = max(c.rules, 1)
	if !c.atMost(mostOfPolicy) {
		return c // without looking at ranges, which is more work
	}
	for _, rules := range p.Rules {
		for _, r := range rules {
			listed := 0
			var blocks []Peer
			for _, x := range r.Peers {
				if x.Block.IsValid() {
					blocks = append(blocks, x)
					listed += 1 + len(x.Except)
				}
			}
			allowed, barred := ranges(blocks)
			c.entries += max(0, prefixes(allowed)+prefixes(barred)-listed)
		}
	}
	return c
}

// selectorCost counts the words of a selector.
func selectorCost(s labels.Selector) int {
	if s == nil {
		return 0
	}
	reqs, _ := s.Requirements()
	n := len(reqs)
	for _, r := range reqs {
		n += len(r.ValuesUnsorted())
	}
	return n
}

// mostRefused bounds what a status says: anybody may write policies.
const mostRefused = 20

// Refused says, in order, which policies allow nothing because they exceed what they may cost: at most mostRefused.
func (b *Builder) Refused() []string {
	var out []string
	for namespace, t := range b.tenants {
		if t.closed {
			out = append(out, fmt.Sprintf("the %d NetworkPolicies of namespace %s: all its pods are isolated, for the policies have together %s",
				len(t.policies), namespace, t.cost.exceeds(mostOfNamespace)))
			continue
		}
		for _, e := range t.policies {
			if e.refused != "" {
				out = append(out, e.refused)
			}
		}
	}
	slices.Sort(out)
	return out[:min(len(out), mostRefused)]
}
