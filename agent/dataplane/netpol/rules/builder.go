package rules

import (
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Builder holds what is wanted of the tables. It is not safe for concurrent use.
type Builder struct {
	families []ruleset.Family
	local    []netip.Prefix // where addresses of this node's pods are from

	pods       map[string]*pod
	namespaces map[string]*namespace
	tenants    map[string]*tenant // by namespace, those that have policies
	policies   map[string]*policy
	addrs      map[netip.Addr]*address
	// elements of the sets of named ports, by set, whether or not a policy uses it
	named     map[string]map[string]struct{}
	peers     map[string]*peerSet
	selectors map[string]*selector
	index     map[bucket]map[*selector]struct{}
	groups    map[string]*group
	locals    int

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

// address records which pod owns an address: one, if several claim it.
type address struct {
	key    string
	owner  *pod
	claims []*pod
}

// selector is what policies select pods by, each but once. It belongs to sets of addresses if it stands for peers,
// and to policies if it stands for their subjects.
type selector struct {
	key        string
	namespace  string // where namespaces is nil
	namespaces labels.Selector
	pods       labels.Selector
	peers      map[*peerSet]struct{}
	policies   map[*policy]struct{}
}

// peerSet is the set of the addresses of the pods that any of some selectors selects: the peers of a rule.
type peerSet struct {
	name      string
	selectors []*selector
	uses      int
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

// uses are the sets that a policy's rules refer to.
type uses struct {
	peers  []*peerSet
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
		families: families, pods: map[string]*pod{}, namespaces: map[string]*namespace{},
		policies: map[string]*policy{},
		tenants:  map[string]*tenant{}, named: map[string]map[string]struct{}{}, peers: map[string]*peerSet{},
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

// Pods returns the number of pods in the cluster.
func (b *Builder) Pods() int { return len(b.pods) }

// LocalPods returns the number of pods on this node.
func (b *Builder) LocalPods() int { return b.locals }

// SetLocal sets the ranges of this node's pods. An address in them without a known pod is cut off.
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

// SetNamespace sets the labels of a namespace.
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

// DeleteNamespace removes a namespace.
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

// SetPod adds or replaces a pod.
func (b *Builder) SetPod(in Pod) {
	now := in.normalize()
	k := key(in.Namespace, in.Name)
	p := b.pods[k]
	if p == nil {
		p = &pod{Pod: Pod{Namespace: now.Namespace, Name: now.Name}}
		b.pods[k] = p
		b.namespace(now.Namespace).pods[now.Name] = p
	} else if p.Local == now.Local && p.Ending == now.Ending && p.Announced == now.Announced &&
		slices.Equal(p.Addrs, now.Addrs) && slices.Equal(p.Ports, now.Ports) && maps.Equal(p.Labels, now.Labels) {
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

// DeletePod removes a pod.
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

// claim records that a pod has an address, release that it no longer has. The pod that owns the address afterwards is
// in the sets with it.
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
		if best == nil || precedes(c, best) {
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

// precedes reports whether a, rather than b, owns an address that both claim.
func precedes(a, b *pod) bool {
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
		// Sets may have several of the pod's selectors. All that an address is in, it leaves or joins at once, so
		// nothing needs to be counted.
		for set := range s.peers {
			b.out.element(set.name, x.key, "", add)
		}
	}
	for _, port := range p.Ports {
		b.call(namedSet(port.Protocol, port.Name), namedKey(x.key, port), add)
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

// call puts what a pod calls by name into the set of that name, or takes it out.
func (b *Builder) call(set, key string, add bool) {
	all := b.named[set]
	switch {
	case !add:
		if delete(all, key); len(all) == 0 {
			delete(b.named, set)
		}
	case all == nil:
		b.named[set] = map[string]struct{}{key: {}}
	default:
		all[key] = struct{}{}
	}
	if b.out.hasSet(set) {
		b.out.element(set, key, "", add)
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

// regroupSubjects finds again the policies of the local pods that the selectors select.
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
