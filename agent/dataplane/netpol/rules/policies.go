package rules

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// tenant is what there is of a namespace's policies. While they exceed what they may cost together, one that allows
// nothing to any pod of the namespace stands in place of all of them.
type tenant struct {
	policies map[string]Policy // by name
	cost     cost
	closed   bool
}

// standIn is the name of the policy that stands in place of others; no object has it.
const standIn = ""

// Policies returns the number of policies.
func (b *Builder) Policies() int {
	n := 0
	for _, t := range b.tenants {
		n += len(t.policies)
	}
	return n
}

// SetPolicy sets a policy as it is now.
func (b *Builder) SetPolicy(in Policy) {
	if in.cost == (cost{}) {
		in = Limit(in)
	}
	t := b.tenants[in.Namespace]
	if t == nil {
		t = &tenant{policies: map[string]Policy{}}
		b.tenants[in.Namespace] = t
	}
	t.cost = t.cost.plus(in.cost).minus(t.policies[in.Name].cost)
	t.policies[in.Name] = in
	if b.settle(in.Namespace, t) {
		b.install(in)
	}
}

// DeletePolicy removes a policy.
func (b *Builder) DeletePolicy(namespace, name string) {
	t := b.tenants[namespace]
	if t == nil {
		return
	}
	t.cost = t.cost.minus(t.policies[name].cost)
	delete(t.policies, name)
	if b.settle(namespace, t) {
		b.uninstall(key(namespace, name))
	}
	if len(t.policies) == 0 {
		delete(b.tenants, namespace)
	}
}

// settle installs the policies of a namespace, or the one that takes their place, when their cost has crossed the
// bound. It reports whether the caller has to apply a change of one policy alone.
func (b *Builder) settle(namespace string, t *tenant) bool {
	switch over := !t.cost.atMost(mostOfNamespace); {
	case over && !t.closed:
		t.closed = true
		b.install(Policy{Namespace: namespace, Name: standIn, Pods: labels.Everything(), Isolates: [2]bool{true, true}})
		for name := range t.policies {
			b.uninstall(key(namespace, name))
		}
		return false
	case over:
		return false
	case t.closed:
		t.closed = false
		for _, p := range t.policies {
			b.install(p)
		}
		b.uninstall(key(namespace, standIn))
		return false
	}
	return true
}

// install makes the chains of a policy, in place of those of an earlier version.
func (b *Builder) install(in Policy) {
	k := key(in.Namespace, in.Name)
	old := b.policies[k]
	now := &policy{Policy: in, key: k}
	b.policies[k] = now
	now.subject = b.acquire(in.Namespace, nil, in.Pods)
	now.subject.policies[now] = struct{}{}
	for d := range now.chains {
		name := policyChain(Direction(d), k)
		if in.Isolates[d] {
			now.chains[d] = name
			b.out.setChain(ruleset.Chain{Name: name, Rules: b.compile(now, Direction(d))})
		} else if old != nil && old.chains[d] != "" {
			b.out.deleteChain(name)
		}
	}
	var subjects []*selector
	if old != nil {
		delete(old.subject.policies, old)
		if old.Isolates != in.Isolates || old.subject != now.subject {
			subjects = append(subjects, old.subject, now.subject)
		}
	} else {
		subjects = append(subjects, now.subject)
	}
	b.regroupSubjects(subjects)
	if old != nil {
		b.drop(old)
	}
}

// uninstall takes away the chains of a policy, if it has any.
func (b *Builder) uninstall(k string) {
	old := b.policies[k]
	if old == nil {
		return
	}
	delete(b.policies, k)
	delete(old.subject.policies, old)
	for _, c := range old.chains {
		if c != "" {
			b.out.deleteChain(c)
		}
	}
	b.regroupSubjects([]*selector{old.subject})
	b.drop(old)
}

// drop gives up what an earlier version of a policy used.
func (b *Builder) drop(old *policy) {
	for _, s := range old.uses.peers {
		b.leavePeers(s)
	}
	for _, s := range slices.Concat(old.uses.static, old.uses.named) {
		b.out.deleteSet(s)
	}
	b.leave(old.subject)
}
