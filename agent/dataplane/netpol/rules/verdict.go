package rules

import (
	"net/netip"
	"sort"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Packet holds the properties of a forwarded packet that rules can match.
type Packet struct {
	Src, Dst netip.Addr
	Protocol uint8
	Port     uint16 // where it goes to
	// Established is true for a packet of a connection that was accepted, Invalid for one that can belong to none, and
	// Midstream for one that cannot be the first of a connection.
	Established, Invalid, Midstream bool
	// Neighbor is true for IPv6 neighbour discovery.
	Neighbor bool
}

// Verdict reports whether the wanted tables let a packet pass.
func (b *Builder) Verdict(p Packet) bool {
	r := run{b: b, p: p, f: ruleset.IPv4}
	if p.Src.Is6() {
		r.f = ruleset.IPv6
	}
	for _, name := range []string{"filter-egress", "filter-ingress"} {
		if c := b.out.base[baseKey{r.f, name}]; c != nil && r.chain(c) == drop {
			return false
		}
	}
	return true
}

// run is a packet on its way through the chains of a family.
type run struct {
	b *Builder
	p Packet
	f ruleset.Family
}

const none = ruleset.Verdict("")

func (r *run) chain(c *ruleset.Chain) ruleset.Verdict {
	for _, rule := range c.Rules {
		if v := r.rule(rule); v != none {
			return v
		}
	}
	return none
}

func (r *run) named(chain string) ruleset.Verdict {
	c := r.b.out.base[baseKey{r.f, chain}]
	if c == nil {
		c = r.b.out.chains[chain]
	}
	return r.chain(c)
}

func (r *run) rule(rule ruleset.Rule) ruleset.Verdict {
	for _, s := range rule {
		ok := true
		switch s := s.(type) {
		case ruleset.Verdict:
			return s
		case ruleset.Reject:
			return drop
		case ruleset.Jump:
			return r.named(s.Chain)
		case ruleset.Lookup:
			chain, found := r.b.Elem(s.Map, r.key(s.Key))
			if !found {
				return none
			}
			return r.named(chain)
		case ruleset.InSet:
			ok = r.in(s.Set, r.key(s.Key)) != s.Not
		case ruleset.InPrefix:
			ok = s.Prefix.Contains(r.addr(s.What)) != s.Not
		case ruleset.Established:
			ok = r.p.Established
		case ruleset.Invalid:
			ok = r.p.Invalid
		case ruleset.Midstream:
			ok = r.p.Midstream && r.p.Protocol == ruleset.TCP
		case ruleset.NoInit:
			ok = r.p.Midstream && r.p.Protocol == ruleset.SCTP
		case ruleset.Neighbor:
			ok = r.p.Neighbor
		}
		if !ok {
			return none
		}
	}
	return none
}

func (r *run) addr(what ruleset.Load) netip.Addr {
	if what == ruleset.Saddr {
		return r.p.Src
	}
	return r.p.Dst
}

func (r *run) key(terms []ruleset.Term) string {
	var buf [40]byte
	k := buf[:0]
	for _, t := range terms {
		switch t {
		case ruleset.Saddr, ruleset.Daddr:
			k = ruleset.PutAddr(k, r.addr(t.(ruleset.Load)))
		case ruleset.L4:
			k = ruleset.PutProto(k, r.p.Protocol)
		case ruleset.Dport:
			k = ruleset.PutPort(k, r.p.Port)
		}
	}
	return string(k)
}

func (r *run) in(name, key string) bool {
	s := r.b.out.sets[name]
	if s == nil {
		return false
	}
	if !s.spec.Ranges {
		_, ok := s.elems[key]
		return ok
	}
	// Ranges of a set do not overlap in their first field, and those of ports only have one protocol each.
	all := s.ranges(len(key))
	n := sort.Search(len(all), func(i int) bool { return all[i][:len(key)] > key })
	return n > 0 && within(r.f, s.spec.Key, key, all[n-1][:len(key)], all[n-1][len(key):])
}

// within compares field by field, as the kernel does.
func within(f ruleset.Family, fields []ruleset.Field, key, from, to string) bool {
	at := 0
	for _, x := range fields {
		n := at + x.Len(f)
		if strings.Compare(key[at:n], from[at:n]) < 0 || strings.Compare(key[at:n], to[at:n]) > 0 {
			return false
		}
		at = n
	}
	return true
}
