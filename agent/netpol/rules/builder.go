package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/agent/netfilter/ruleset"
)

// Builder holds what is wanted of the tables. It is not safe for concurrent use.
type Builder struct {
	families []ruleset.Family
	local    []netip.Prefix // where addresses of this node's pods are from

	pods       map[string]*pod
	namespaces map[string]*namespace
	policies   map[string]*policy
	addrs      map[netip.Addr]*address
	selectors  map[string]*selector
	index      map[bucket]map[*selector]struct{}
	groups     map[string]*group
	locals     int

	out store
}

type pod struct {
	Pod
	selectors []*selector
	groups    [2]*group // nil where nothing isolates it
}

type namespace struct {
	labels labels.Set
	known  bool // its labels are
	pods   map[string]*pod
}

// address is who has an address: of several pods only one.
type address struct {
	key    string
	owner  *pod
	claims []*pod
}

// selector is what policies select pods by, each but once. It has a set of its members' addresses if it
// stands for peers, and policies if it stands for their subjects.
type selector struct {
	key, set   string
	namespace  string // where namespaces is nil
	namespaces labels.Selector
	pods       labels.Selector
	peers      int
	policies   map[*policy]struct{}
}

// bucket is where selectors are found that may select a pod: by a label that the pod or its namespace
// must have.
type bucket struct {
	kind            byte
	namespace, k, v string
}

type policy struct {
	Policy
	key     string
	subject *selector
	chains  [2]string // empty where it does not isolate
	uses    uses
}

// uses is what a policy's rules refer to.
type uses struct {
	peers  []*selector
	static []string // sets of blocks and ports
	named  []string // sets of named ports
}

// group is a set of policies that some pod of this node has, in one direction.
type group struct {
	chain string
	pods  int
}

// NewBuilder returns a builder for tables of these families, without pods or policies.
func NewBuilder(families ...ruleset.Family) *Builder {
	b := &Builder{
		families: families, pods: map[string]*pod{}, namespaces: map[string]*namespace{}, policies: map[string]*policy{},
		addrs: map[netip.Addr]*address{}, selectors: map[string]*selector{}, index: map[bucket]map[*selector]struct{}{},
		groups: map[string]*group{}, out: newStore(),
	}
	for _, s := range fixedSets() {
		b.out.addSet(s)
	}
	for _, f := range families {
		for _, c := range base(f, nil) {
			b.out.setBase(f, c)
		}
	}
	return b
}

// Families are those that the builder was made for.
func (b *Builder) Families() []ruleset.Family { return b.families }

// Policies is how many policies there are.
func (b *Builder) Policies() int { return len(b.policies) }

// Pods is how many pods there are, in the whole cluster.
func (b *Builder) Pods() int { return len(b.pods) }

// LocalPods is how many of them run on this node.
func (b *Builder) LocalPods() int { return b.locals }

// SetLocal says where addresses of this node's pods are from: one that is not known is cut off.
func (b *Builder) SetLocal(prefixes []netip.Prefix) {
	if slices.Equal(prefixes, b.local) {
		return
	}
	b.local = slices.Clone(prefixes)
	for _, f := range b.families {
		for _, c := range base(f, b.local) {
			b.out.setBase(f, c)
		}
	}
}

// SetNamespace says which labels a namespace has.
func (b *Builder) SetNamespace(name string, l labels.Set) {
	n := b.namespace(name)
	if n.known && maps.Equal(n.labels, l) {
		return
	}
	n.labels, n.known = maps.Clone(l), true
	for _, p := range n.pods {
		b.reselect(p)
	}
}

// DeleteNamespace says that a namespace is gone.
func (b *Builder) DeleteNamespace(name string) {
	n := b.namespaces[name]
	if n == nil {
		return
	}
	n.labels, n.known = nil, false
	for _, p := range n.pods {
		b.reselect(p)
	}
	b.dropNamespace(name)
}

// Namespaces are the names of those whose labels are known.
func (b *Builder) Namespaces() []string {
	var out []string
	for name, n := range b.namespaces {
		if n.known {
			out = append(out, name)
		}
	}
	return out
}

func (b *Builder) namespace(name string) *namespace {
	n := b.namespaces[name]
	if n == nil {
		n = &namespace{pods: map[string]*pod{}}
		b.namespaces[name] = n
	}
	return n
}

func (b *Builder) dropNamespace(name string) {
	if n := b.namespaces[name]; !n.known && len(n.pods) == 0 {
		delete(b.namespaces, name)
	}
}

// PodKeys are namespace/name of all pods.
func (b *Builder) PodKeys() []string { return slices.Collect(maps.Keys(b.pods)) }

// PolicyKeys are namespace/name of all policies.
func (b *Builder) PolicyKeys() []string { return slices.Collect(maps.Keys(b.policies)) }

// SetPod says what a pod looks like now.
func (b *Builder) SetPod(in Pod) {
	now := in.normalize()
	k := key(in.Namespace, in.Name)
	p := b.pods[k]
	if p == nil {
		p = &pod{Pod: Pod{Namespace: now.Namespace, Name: now.Name}}
		b.pods[k] = p
		b.namespace(now.Namespace).pods[now.Name] = p
	} else if p.Local == now.Local && p.Ending == now.Ending && p.Announced == now.Announced && slices.Equal(p.Addrs, now.Addrs) && slices.Equal(p.Ports, now.Ports) && maps.Equal(p.Labels, now.Labels) {
		return
	}
	relabeled := !maps.Equal(p.Labels, now.Labels) || p.selectors == nil
	// What stays of it need not be touched: the store notices what comes back as it was.
	for _, a := range p.Addrs {
		b.release(a, p)
	}
	if p.Local != now.Local {
		b.locals += map[bool]int{true: 1, false: -1}[now.Local]
	}
	p.Pod = now
	if relabeled {
		p.selectors = b.selecting(p)
	}
	b.regroup(p)
	for _, a := range p.Addrs {
		b.claim(a, p)
	}
}

// DeletePod says that a pod is gone.
func (b *Builder) DeletePod(namespace, name string) {
	k := key(namespace, name)
	p := b.pods[k]
	if p == nil {
		return
	}
	for _, a := range p.Addrs {
		b.release(a, p)
	}
	if p.Local {
		b.locals--
	}
	p.Addrs, p.Local = nil, false
	b.regroup(p)
	delete(b.pods, k)
	delete(b.namespaces[namespace].pods, name)
	b.dropNamespace(namespace)
}

// claim notes that a pod has an address, release that it has not. Whoever owns it afterwards is in the
// sets with it.
func (b *Builder) claim(a netip.Addr, p *pod) {
	x := b.addrs[a]
	if x == nil {
		x = &address{key: string(a.AsSlice())}
		b.addrs[a] = x
	}
	x.claims = append(x.claims, p)
	b.own(x)
}

func (b *Builder) release(a netip.Addr, p *pod) {
	x := b.addrs[a]
	x.claims = slices.DeleteFunc(x.claims, func(c *pod) bool { return c == p })
	b.own(x)
	if len(x.claims) == 0 {
		delete(b.addrs, a)
	}
}

func (b *Builder) own(x *address) {
	var best *pod
	for _, c := range x.claims {
		if best == nil || better(c, best) {
			best = c
		}
	}
	if best == x.owner {
		return
	}
	if x.owner != nil {
		b.contribute(x, x.owner, false)
	}
	if x.owner = best; best != nil {
		b.contribute(x, best, true)
	}
}

// better orders pods that have the same address.
func better(a, b *pod) bool {
	if a.Announced != b.Announced {
		return a.Announced
	}
	if a.Ending != b.Ending {
		return !a.Ending
	}
	if a.Local != b.Local {
		return a.Local
	}
	return key(a.Namespace, a.Name) < key(b.Namespace, b.Name)
}

// contribute puts an address into all sets that its owner belongs to, or takes it out.
func (b *Builder) contribute(x *address, p *pod, add bool) {
	for _, s := range p.selectors {
		if s.peers > 0 {
			b.out.element(s.set, x.key, "", add)
		}
	}
	for _, port := range p.Ports {
		if name := namedSet(port.Protocol, port.Name); b.out.hasSet(name) {
			b.out.element(name, namedKey(x.key, port), "", add)
		}
	}
	if !p.Local {
		return
	}
	b.out.element(known.Name, x.key, "", add)
	b.contributeGroups(x, p, add)
}

func (b *Builder) contributeGroups(x *address, p *pod, add bool) {
	any := false
	for d, g := range p.groups {
		if g != nil {
			any = true
			b.out.element(groups[d].Name, x.key, g.chain, add)
		}
	}
	if any {
		b.out.element(isolated.Name, x.key, "", add)
		b.out.element(self.Name, x.key+x.key, "", add)
	}
}

func namedKey(addr string, p NamedPort) string {
	return addr + string(ruleset.PutPort(ruleset.PutProto(nil, p.Protocol), p.Port))
}

// owned calls f for each address that the pod owns.
func (b *Builder) owned(p *pod, f func(x *address)) {
	for _, a := range p.Addrs {
		if x := b.addrs[a]; x != nil && x.owner == p {
			f(x)
		}
	}
}

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

// regroup finds which policies a pod has. Its addresses are not in the sets meanwhile.
func (b *Builder) regroup(p *pod) {
	var want [2]*group
	if p.Local {
		for d := range want {
			var names []string
			for _, s := range p.selectors {
				for pol := range s.policies {
					if pol.Isolates[d] {
						names = append(names, pol.chains[d])
					}
				}
			}
			if len(names) > 0 {
				slices.Sort(names)
				want[d] = b.group(Direction(d), names)
				want[d].pods++
			}
		}
	}
	for _, old := range p.groups {
		if old == nil {
			continue
		}
		if old.pods--; old.pods == 0 {
			delete(b.groups, old.chain)
			b.out.deleteChain(old.chain)
		}
	}
	p.groups = want
}

func (b *Builder) group(d Direction, policies []string) *group {
	name := groupChain(d, policies)
	g := b.groups[name]
	if g == nil {
		g = &group{chain: name}
		b.groups[name] = g
		c := ruleset.Chain{Name: name}
		for _, p := range policies {
			c.Rules = append(c.Rules, ruleset.Rule{ruleset.Jump{Chain: p}})
		}
		c.Rules = append(c.Rules, ruleset.Rule{ruleset.Count{}, drop})
		b.out.setChain(c)
	}
	return g
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

// useNamed counts one more user of the set of pods' ports of a name.
func (b *Builder) useNamed(protocol uint8, name string) string {
	set := namedSet(protocol, name)
	if b.out.addSet(namedSpec(set)) {
		for _, x := range b.addrs {
			for _, port := range x.owner.Ports {
				if port.Protocol == protocol && port.Name == name {
					b.out.element(set, namedKey(x.key, port), "", true)
				}
			}
		}
	}
	return set
}

// SetPolicy says what a policy looks like now.
func (b *Builder) SetPolicy(in Policy) {
	if in.Pods == nil {
		in.Pods = labels.Everything()
	}
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

// DeletePolicy says that a policy is gone.
func (b *Builder) DeletePolicy(namespace, name string) {
	k := key(namespace, name)
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

// regroupSubjects finds the policies of local pods anew, those that the selectors select.
func (b *Builder) regroupSubjects(subjects []*selector) {
	done := map[*pod]bool{}
	for _, s := range subjects {
		b.candidates(s, func(p *pod, n *namespace) {
			if !p.Local || done[p] || !s.selects(p, n) {
				return
			}
			done[p] = true
			b.owned(p, func(x *address) { b.contributeGroups(x, p, false) })
			b.regroup(p)
			b.owned(p, func(x *address) { b.contributeGroups(x, p, true) })
		})
	}
}

// compile makes the rules of a policy's chain and notes what they use.
func (b *Builder) compile(p *policy, d Direction) []ruleset.Rule {
	var out []ruleset.Rule
	for _, r := range p.Rules[d] {
		peers := b.peerMatches(p, d, r.Peers)
		ports := b.portMatches(p, r.Ports)
		for _, x := range peers {
			for _, y := range ports {
				out = append(out, append(append(slices.Clone(x), y...), accept))
			}
		}
	}
	return out
}

// peerMatches are the ways in which a packet can be from, or for, one of the peers.
func (b *Builder) peerMatches(p *policy, d Direction, peers []Peer) []ruleset.Rule {
	if len(peers) == 0 {
		return []ruleset.Rule{nil}
	}
	what := peerTerm(d)
	var out []ruleset.Rule
	var blocks []Peer
	var seen []*selector
	for _, x := range peers {
		if x.Block.IsValid() {
			blocks = append(blocks, x)
			continue
		}
		s := b.acquire(p.Namespace, x.Namespaces, x.Pods)
		if slices.Contains(seen, s) {
			continue
		}
		seen = append(seen, s)
		b.usePeers(s)
		p.uses.peers = append(p.uses.peers, s)
		out = append(out, ruleset.Rule{in(s.set, what)})
	}
	if all := spans(blocks); len(all) > 0 {
		var name strings.Builder
		for _, s := range all {
			name.WriteString(s.from.String() + "-" + s.to.String() + " ")
		}
		set := blockPrefix + short(name.String())
		if b.out.addSet(blockSpec(set)) {
			for _, s := range all {
				from, to := ruleset.PutProto(s.from.AsSlice(), 0), ruleset.PutProto(s.to.AsSlice(), 255)
				b.out.element(set, string(from)+string(to), "", true)
			}
		}
		p.uses.static = append(p.uses.static, set)
		out = append(out, ruleset.Rule{in(set, what, ruleset.L4)})
	}
	return out
}

// portMatches are the ways in which a packet can be for one of the ports.
func (b *Builder) portMatches(p *policy, ports []Port) []ruleset.Rule {
	if len(ports) == 0 {
		return []ruleset.Rule{nil}
	}
	var out []ruleset.Rule
	if nums := numbered(ports); len(nums) > 0 {
		ranges := slices.ContainsFunc(nums, func(p Port) bool { return p.From != p.To })
		var elems []string
		for _, n := range nums {
			e := string(ruleset.PutPort(ruleset.PutProto(nil, n.Protocol), n.From))
			if ranges {
				e += string(ruleset.PutPort(ruleset.PutProto(nil, n.Protocol), n.To))
			}
			elems = append(elems, e)
		}
		set := portsPrefix + short(fmt.Sprint(ranges, elems))
		if b.out.addSet(portsSpec(set, ranges)) {
			for _, e := range elems {
				b.out.element(set, e, "", true)
			}
		}
		p.uses.static = append(p.uses.static, set)
		out = append(out, ruleset.Rule{in(set, ruleset.L4, ruleset.Dport)})
	}
	var seen []string
	for _, n := range ports {
		if n.Name == "" || slices.Contains(seen, namedSet(n.Protocol, n.Name)) {
			continue
		}
		set := b.useNamed(n.Protocol, n.Name)
		seen = append(seen, set)
		p.uses.named = append(p.uses.named, set)
		// Of whoever the packet is for: that is the pod itself, or the peer.
		out = append(out, ruleset.Rule{in(set, ruleset.Daddr, ruleset.L4, ruleset.Dport)})
	}
	return out
}
