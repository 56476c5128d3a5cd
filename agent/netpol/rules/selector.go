package rules

import (
	"slices"

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
	s := &selector{key: k, set: peerPrefix + short(k), namespace: ns, namespaces: namespaces, pods: pods, policies: map[*policy]struct{}{}}
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

// usePeers and leavePeers count who needs the set of a selector's members.
func (b *Builder) usePeers(s *selector) {
	if s.peers++; s.peers > 1 {
		return
	}
	b.out.addSet(peerSpec(s.set))
	b.candidates(s, func(p *pod, n *namespace) {
		if s.selects(p, n) {
			b.owned(p, func(x *address) { b.out.element(s.set, x.key, "", true) })
		}
	})
}

func (b *Builder) leavePeers(s *selector) {
	if s.peers--; s.peers == 0 {
		b.out.deleteSet(s.set)
		b.leave(s)
	}
}

// leave forgets a selector that nobody uses.
func (b *Builder) leave(s *selector) {
	if s.peers > 0 || len(s.policies) > 0 || b.selectors[s.key] != s {
		return
	}
	delete(b.selectors, s.key)
	at := s.bucket()
	if delete(b.index[at], s); len(b.index[at]) == 0 {
		delete(b.index, at)
	}
	b.candidates(s, func(p *pod, _ *namespace) {
		p.selectors = slices.DeleteFunc(p.selectors, func(x *selector) bool { return x == s })
	})
}
