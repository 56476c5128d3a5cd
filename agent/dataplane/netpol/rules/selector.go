package rules

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// selecting finds the selectors that select a pod.
func (b *Builder) selecting(p *pod) []*selector {
	out := []*selector{}
	n := b.namespaces[p.Namespace]
	look := func(k bucket) {
		for s := range b.index[k] {
			if s.selects(p, n) {
				out = append(out, s)
			}
		}
	}
	look(bucket{kind: 'n', namespace: p.Namespace})
	look(bucket{kind: '*'})
	for k, v := range p.Labels {
		look(bucket{kind: 'p', namespace: p.Namespace, k: k, v: v})
		look(bucket{kind: 'P', k: k, v: v})
	}
	for k, v := range n.labels {
		look(bucket{kind: 'N', k: k, v: v})
	}
	return out
}

func (s *selector) selects(p *pod, n *namespace) bool {
	if s.namespaces == nil {
		return s.namespace == p.Namespace && s.pods.Matches(p.Labels)
	}
	// While a namespace's labels are not known, nothing is allowed because of them.
	return n.known && s.namespaces.Matches(n.labels) && s.pods.Matches(p.Labels)
}

func (s *selector) bucket() bucket {
	k, v, ok := exact(s.pods)
	switch {
	case s.namespaces == nil && ok:
		return bucket{kind: 'p', namespace: s.namespace, k: k, v: v}
	case s.namespaces == nil:
		return bucket{kind: 'n', namespace: s.namespace}
	case ok:
		return bucket{kind: 'P', k: k, v: v}
	}
	if k, v, ok = exact(s.namespaces); ok {
		return bucket{kind: 'N', k: k, v: v}
	}
	return bucket{kind: '*'}
}

// reselect follows a change of labels that are not the pod's own.
func (b *Builder) reselect(p *pod) {
	now := b.selecting(p)
	b.owned(p, func(x *address) { b.contribute(x, p, false) })
	p.selectors = now
	b.regroup(p)
	b.owned(p, func(x *address) { b.contribute(x, p, true) })
}

// candidates calls f for each pod that a selector might select.
func (b *Builder) candidates(s *selector, f func(p *pod, n *namespace)) {
	if s.namespaces == nil {
		if n := b.namespaces[s.namespace]; n != nil {
			for _, p := range n.pods {
				f(p, n)
			}
		}
		return
	}
	for _, n := range b.namespaces {
		if n.known && s.namespaces.Matches(n.labels) {
			for _, p := range n.pods {
				f(p, n)
			}
		}
	}
}

// acquire finds or makes a selector.
func (b *Builder) acquire(ns string, namespaces, pods labels.Selector) *selector {
	if pods == nil {
		pods = labels.Everything()
	}
	k := selectorKey(ns, namespaces, pods)
	if s := b.selectors[k]; s != nil {
		return s
	}
	s := &selector{key: k, namespace: ns, namespaces: namespaces, pods: pods, peers: map[*peerSet]struct{}{},
		policies: map[*policy]struct{}{}}
	b.selectors[k] = s
	at := s.bucket()
	if b.index[at] == nil {
		b.index[at] = map[*selector]struct{}{}
	}
	b.index[at][s] = struct{}{}
	b.candidates(s, func(p *pod, n *namespace) {
		if s.selects(p, n) {
			p.selectors = append(p.selectors, s)
		}
	})
	return s
}

// usePeers and leavePeers count who needs the set of the members of selectors, which are in the order of their keys.
func (b *Builder) usePeers(selectors []*selector) *peerSet {
	var keys strings.Builder
	for _, s := range selectors {
		// One alone has the name that it always had, so that a table of an earlier release is adopted.
		if len(selectors) > 1 {
			fmt.Fprintf(&keys, "%d:", len(s.key))
		}
		keys.WriteString(s.key)
	}
	name := peerPrefix + short(keys.String())
	set := b.peers[name]
	if set != nil {
		set.uses++
		return set
	}
	set = &peerSet{name: name, selectors: selectors, uses: 1}
	b.peers[name] = set
	b.out.addSet(peerSpec(name))
	for _, s := range selectors {
		s.peers[set] = struct{}{}
		b.candidates(s, func(p *pod, n *namespace) {
			if s.selects(p, n) {
				b.owned(p, func(x *address) { b.out.element(name, x.key, "", true) })
			}
		})
	}
	return set
}

func (b *Builder) leavePeers(set *peerSet) {
	if set.uses--; set.uses > 0 {
		return
	}
	delete(b.peers, set.name)
	b.out.deleteSet(set.name)
	for _, s := range set.selectors {
		delete(s.peers, set)
	}
	b.leave(set.selectors...)
}

// leave removes those of the selectors that no set uses.
func (b *Builder) leave(selectors ...*selector) {
	gone := map[*selector]bool{}
	for _, s := range selectors {
		if len(s.peers) > 0 || len(s.policies) > 0 || b.selectors[s.key] != s {
			continue
		}
		gone[s] = true
		delete(b.selectors, s.key)
		at := s.bucket()
		if delete(b.index[at], s); len(b.index[at]) == 0 {
			delete(b.index, at)
		}
	}
	forget := func(p *pod) {
		p.selectors = slices.DeleteFunc(p.selectors, func(x *selector) bool { return gone[x] })
	}
	// A pod may have many of many selectors; then it is looked at once, not once for each.
	const few = 8
	if len(gone) > few {
		for _, p := range b.pods {
			forget(p)
		}
		return
	}
	for s := range gone {
		b.candidates(s, func(p *pod, _ *namespace) { forget(p) })
	}
}
