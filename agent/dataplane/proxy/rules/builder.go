package rules

import (
	"encoding/binary"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

func nativeMark(s string) uint32 { return binary.NativeEndian.Uint32([]byte(s[:4])) }

// Elem is one element of a set or map; key and value are as the kernel stores them.
type Elem struct {
	Class    // N is 0 where a set has no classes
	Key, Val string
	// Comment names the Service port, on the first of its endpoints.
	Comment string
}

// Change is what to do to a table so that it is as wanted: first Del, then Add. A value that changes is
// in both.
type Change struct {
	Del, Add []Elem
	// DelClass and AddClass are maps and sets that go and come. If there are any, Classes are all that
	// there are afterwards.
	DelClass, AddClass, Classes []Class
	// Forget is true if the kernel may hold entries of clients with affinity to endpoints that are gone.
	Forget bool
}

// Empty reports whether there is nothing to do.
func (c Change) Empty() bool { return len(c.Del)+len(c.Add)+len(c.DelClass)+len(c.AddClass) == 0 }

// Builder holds the wanted elements of one table. It is not safe for concurrent use.
type Builder struct {
	cfg     Config
	ports   map[string]*ServicePort
	names   map[string][]string // of ports, by Service
	slots   int
	facts   [numFacts]map[string]claim
	classes map[Class]int
	dirty   map[factKey]fact // what was published of a touched fact
	before  map[Class]bool   // whether a touched class was there
	forget  bool
}

// fact is what a Service wants, in one piece: several elements may come from it. Of two Services that
// want the same (an address that both say is theirs), the first by name gets it, and gets it whole.
//
// Facts are numbered as the sets that they end up in. A source's value is all endpoints; that of Firewalled
// is all ranges; that of a sticky set is the seconds.
type fact struct{ val, owner string }

const numFacts = NumSets

type factKey struct {
	set SetID
	key string
}

// claim is a claimant of a fact. Facts without a value are only counted: thousands may share one.
type claim struct {
	count int32
	by    *ServicePort
	val   string
	next  *claim
}

func (c *claim) fact() fact {
	if c.count > 0 {
		return fact{}
	}
	w := c
	for n := c.next; n != nil; n = n.next {
		if n.by.Name < w.by.Name {
			w = n
		}
	}
	return fact{w.val, w.by.Name}
}

// NewBuilder returns a builder of an empty table.
func NewBuilder(cfg Config) *Builder {
	b := &Builder{cfg: cfg, ports: map[string]*ServicePort{}, names: map[string][]string{}, classes: map[Class]int{},
		dirty: map[factKey]fact{}, before: map[Class]bool{}}
	for i := range b.facts {
		b.facts[i] = map[string]claim{}
	}
	return b
}

// Config returns the builder's configuration.
func (b *Builder) Config() Config { return b.cfg }

// Len is the number of Service ports.
func (b *Builder) Len() int { return len(b.ports) }

// Names returns the Service ports that are there.
func (b *Builder) Names() iter.Seq[string] { return maps.Keys(b.ports) }

// Get returns a Service port as it was set, and whether it is there.
func (b *Builder) Get(name string) (ServicePort, bool) {
	e := b.ports[name]
	if e == nil {
		return ServicePort{}, false
	}
	return *e, true
}

// Set adds or replaces a Service port.
func (b *Builder) Set(s ServicePort) {
	now := normalize(b.cfg.Family, s)
	old := b.ports[s.Name]
	b.queueForget(old, &now)
	b.replace(old, &now)
	b.ports[s.Name] = &now
	if old == nil {
		b.names[s.Service] = append(b.names[s.Service], s.Name)
	}
}

// Delete removes a Service port.
func (b *Builder) Delete(name string) {
	old := b.ports[name]
	if old == nil {
		return
	}
	b.queueForget(old, &ServicePort{})
	b.replace(old, nil)
	delete(b.ports, name)
	left := slices.DeleteFunc(b.names[old.Service], func(n string) bool { return n == name })
	if len(left) == 0 {
		delete(b.names, old.Service)
	} else {
		b.names[old.Service] = left
	}
}

// PortsOf returns the names of the ports of a Service.
func (b *Builder) PortsOf(service string) []string { return slices.Clone(b.names[service]) }

// Endpoints counts endpoints behind addresses, those of sources.
func (b *Builder) Endpoints() int { return b.slots }

// queueForget sets Forget if clients may be tied to an endpoint that is gone, or to a Service that has no
// affinity any more.
func (b *Builder) queueForget(old, now *ServicePort) {
	if old == nil || old.Affinity == 0 {
		return
	}
	left := func(old, now []netip.AddrPort) bool {
		return slices.ContainsFunc(old, func(e netip.AddrPort) bool {
			_, stays := slices.BinarySearchFunc(now, e, netip.AddrPort.Compare) // normalize sorts them
			return !stays
		})
	}
	same := now.Affinity != 0 && old.ClusterIP == now.ClusterIP && old.Port == now.Port && old.NodePort == now.NodePort &&
		old.InternalLocal == now.InternalLocal && old.ExternalLocal == now.ExternalLocal &&
		slices.Equal(old.ExternalIPs, now.ExternalIPs) && slices.Equal(old.LoadBalancerIPs, now.LoadBalancerIPs)
	b.forget = b.forget || !same || left(old.Cluster, now.Cluster) || left(old.Local, now.Local)
}

// Stale reports whether a client should no longer be tied to an endpoint. key is the address, protocol
// and port that the client calls.
func (b *Builder) Stale(key, endpoint string) bool {
	port := key[len(key)-portLen:]
	for id := range SetID(NumSources) {
		k, sticky := key, StickyServices
		if id >= NodePorts {
			k, sticky = port, StickyNodePorts
		}
		if _, ok := b.facts[sticky][k]; !ok {
			continue
		}
		c, ok := b.facts[id][k]
		if !ok {
			continue
		}
		n := b.targetLen()
		for v := c.fact().val; len(v) >= n; v = v[n:] {
			if v[:n] == endpoint {
				return false
			}
		}
	}
	return true
}

const portLen = 8 // of protocol and port in a key

// replace takes the claims of the old Service port away and puts in those of the new one.
func (b *Builder) replace(old, now *ServicePort) {
	if old != nil {
		b.wanted(old, func(set SetID, key, val string) {
			b.touch(set, key)
			b.unclaim(set, key, old)
			b.count(set, val, -1)
		})
	}
	if now == nil {
		return
	}
	b.wanted(now, func(set SetID, key, val string) {
		b.touch(set, key)
		b.count(set, val, 1)
		first, ok := b.facts[set][key]
		if val == "" {
			first.count++
			b.facts[set][key] = first
			return
		}
		c := claim{by: now, val: val}
		if ok {
			c.next = &first
		}
		b.facts[set][key] = c
	})
}

func (b *Builder) count(set SetID, val string, by int) {
	if !set.Classed() {
		return
	}
	c := b.class(set, val)
	if set < NumSources {
		b.slots += by * int(c.N)
	}
	if _, noted := b.before[c]; !noted {
		b.before[c] = b.classes[c] > 0
	}
	if b.classes[c] += by; b.classes[c] == 0 {
		delete(b.classes, c)
	}
}

func (b *Builder) unclaim(set SetID, key string, by *ServicePort) {
	c, ok := b.facts[set][key]
	switch {
	case !ok:
	case c.count > 1:
		c.count--
		b.facts[set][key] = c
	case c.count == 1 || c.by == by && c.next == nil:
		delete(b.facts[set], key)
	case c.by == by:
		b.facts[set][key] = *c.next
	default:
		// The rest of the list is copied as far as it changes: a claim may be held by value elsewhere.
		for p := &c; p.next != nil; p = p.next {
			if p.next.by == by {
				p.next = p.next.next
				break
			}
		}
		b.facts[set][key] = c
	}
}

// none stands for a fact that was not there.
var none = fact{owner: "\x00"}

// touch records the published state of a fact before it changes.
func (b *Builder) touch(set SetID, key string) {
	k := factKey{set, key}
	if _, ok := b.dirty[k]; ok {
		return
	}
	if c, ok := b.facts[set][key]; ok {
		b.dirty[k] = c.fact()
	} else {
		b.dirty[k] = none
	}
}

// Flush returns what changed since the last Flush.
func (b *Builder) Flush() Change {
	var out Change
	for k, was := range b.dirty {
		now := none
		if c, is := b.facts[k.set][k.key]; is {
			now = c.fact()
		}
		if now == was {
			continue
		}
		var before, after []Elem
		if was != none {
			b.expand(k.set, k.key, was, func(e Elem) bool { before = append(before, e); return true })
		}
		if now != none {
			b.expand(k.set, k.key, now, func(e Elem) bool { after = append(after, e); return true })
		}
		// Elements of a fact stand in the order of their keys, so equal ones are found side by side.
		byKey := func(x, y Elem) int {
			if x.Class != y.Class {
				return int(x.Set)<<20 + int(x.N) - int(y.Set)<<20 - int(y.N)
			}
			return strings.Compare(x.Key, y.Key)
		}
		slices.SortFunc(before, byKey)
		slices.SortFunc(after, byKey)
		for len(before) > 0 && len(after) > 0 {
			switch d := byKey(before[0], after[0]); {
			case before[0] == after[0]:
				before, after = before[1:], after[1:]
			case d < 0:
				out.Del, before = append(out.Del, before[0]), before[1:]
			case d > 0:
				out.Add, after = append(out.Add, after[0]), after[1:]
			default:
				out.Del, out.Add = append(out.Del, before[0]), append(out.Add, after[0])
				before, after = before[1:], after[1:]
			}
		}
		out.Del, out.Add = append(out.Del, before...), append(out.Add, after...)
	}
	for c, was := range b.before {
		switch is := b.classes[c] > 0; {
		case was && !is:
			out.DelClass = append(out.DelClass, c)
		case is && !was:
			out.AddClass = append(out.AddClass, c)
		}
	}
	slices.SortFunc(out.DelClass, Class.Compare)
	slices.SortFunc(out.AddClass, Class.Compare)
	if len(out.AddClass)+len(out.DelClass) > 0 {
		out.Classes = b.Classes()
	}
	out.Forget, b.forget = b.forget, false
	clear(b.before)
	if len(b.dirty) > 1000 {
		b.dirty = map[factKey]fact{} // a map never shrinks
	} else {
		clear(b.dirty)
	}
	slices.SortFunc(out.Del, Elem.compare)
	slices.SortFunc(out.Add, Elem.compare)
	return out
}

// Compare orders classes.
func (c Class) Compare(d Class) int {
	if c.Set != d.Set {
		return int(c.Set) - int(d.Set)
	}
	return int(c.N) - int(d.N)
}

func (e Elem) compare(f Elem) int {
	if d := e.Class.Compare(f.Class); d != 0 {
		return d
	}
	return strings.Compare(e.Key, f.Key)
}

// Classes returns all classes, in order.
func (b *Builder) Classes() []Class {
	return slices.SortedFunc(maps.Keys(b.classes), Class.Compare)
}

// All yields every wanted element, in no order but class by class within a set.
func (b *Builder) All() iter.Seq[Elem] {
	return func(yield func(Elem) bool) {
		for set := range b.facts {
			for key, c := range b.facts[set] {
				if !b.expand(SetID(set), key, c.fact(), yield) {
					return
				}
			}
		}
	}
}

// Want returns the wanted element of this class with this key, and whether there is one.
func (b *Builder) Want(c Class, key string) (out Elem, found bool) {
	set, fk := c.Set, key
	switch {
	case set < NumSources && len(key) >= 4:
		fk = key[:len(key)-4]
	case set == FirewallAllowed:
		set, fk = Firewalled, key[:max(0, len(key)/2-Addr.Len(b.cfg.Family))]
	}
	claim, ok := b.facts[set][fk]
	if !ok {
		return Elem{}, false
	}
	f := claim.fact()
	if set < NumSources {
		// Not through expand: this is called for every endpoint.
		i, n := nativeMark(key[len(fk):]), b.targetLen()
		if b.class(set, f.val) != c || i >= c.N {
			return Elem{}, false
		}
		out = Elem{Class: c, Key: key, Val: f.val[int(i)*n:][:n]}
		if i == 0 {
			out.Comment = f.owner
		}
		return out, true
	}
	b.expand(set, fk, f, func(e Elem) bool {
		if e.Class == c && e.Key == key {
			out, found = e, true
		}
		return !found
	})
	return out, found
}

// Count is the number of Services' addresses in a set: of a source, how many addresses with a port lead
// to endpoints.
func (b *Builder) Count(set SetID) int { return len(b.facts[set]) }
