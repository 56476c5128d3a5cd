package rules

import (
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

func (b *Builder) targetLen() int { return Addr.Len(b.cfg.Family) + 4 }

// wanted lists the facts of a Service port.
func (b *Builder) wanted(e *ServicePort, add func(set SetID, key, val string)) {
	f := b.cfg.Family
	var buf [48]byte
	vip := func(a netip.Addr) string {
		return string(ruleset.PutPort(ruleset.PutProto(ruleset.PutAddr(buf[:0], a), e.Protocol), e.Port))
	}
	targets := func(eps []netip.AddrPort) string {
		val := make([]byte, 0, len(eps)*b.targetLen())
		for _, ep := range eps {
			val = ruleset.PutPort(ruleset.PutAddr(val, ep.Addr()), ep.Port())
		}
		return string(val)
	}
	cluster, local := targets(e.Cluster), targets(e.Local)
	sticky := func(set SetID, key string) {
		if e.Affinity != 0 {
			add(set, key, string(ruleset.PutMark(buf[:0], e.Affinity)))
		}
	}
	for _, a := range e.Hairpin {
		add(Hairpin, string(ruleset.PutAddr(ruleset.PutAddr(buf[:0], a), a)), "")
	}
	if f.Has(e.ClusterIP) {
		// Whatever goes to this address and is not translated is rejected, so no endpoints need no element.
		add(ClusterIPs, string(ruleset.PutAddr(buf[:0], e.ClusterIP)), "")
		eps := cluster
		if e.InternalLocal {
			eps = local
		}
		k := vip(e.ClusterIP)
		switch {
		case eps != "":
			add(Services, k, eps)
			sticky(StickyServices, k)
		case e.InternalLocal && e.Anywhere:
			add(DropServices, k, "")
		}
	}
	outer := func(k string, all, onlyCluster, masq, only, reject, drop, stickySet SetID) {
		switch {
		case e.ExternalLocal:
			if cluster != "" {
				add(onlyCluster, k, cluster)
				add(only, k, "")
			}
			switch {
			case local != "":
				add(all, k, local)
			case e.Anywhere:
				// Dropped, not refused: a load balancer that has not noticed yet will try elsewhere.
				add(drop, k, "")
			default:
				add(reject, k, "")
			}
		case cluster != "":
			add(all, k, cluster)
			add(masq, k, "")
		default:
			add(reject, k, "")
		}
		if cluster+local != "" {
			sticky(stickySet, k)
		}
	}
	outerIP := func(k string) {
		outer(k, Services, ServicesCluster, MasqServices, LocalServices, RejectServices, DropServices, StickyServices)
	}
	for _, a := range e.ExternalIPs {
		outerIP(vip(a))
	}
	sources := b.sources(e)
	for _, a := range e.LoadBalancerIPs {
		k := vip(a)
		outerIP(k)
		if sources != "" {
			add(Firewalled, k, sources)
		}
	}
	if e.NodePort != 0 {
		outer(string(ruleset.PutPort(ruleset.PutProto(buf[:0], e.Protocol), e.NodePort)),
			NodePorts, NodePortsCluster, MasqNodePorts, LocalNodePorts, RejectNodePorts, DropNodePorts, StickyNodePorts)
	}
}

// sources are the ranges that may use a Service port's load balancer, one after the other, empty where everybody may.
// They are the same, and held once, for all its addresses.
func (b *Builder) sources(e *ServicePort) string {
	if len(e.SourceRanges) == 0 || len(e.LoadBalancerIPs) == 0 {
		return ""
	}
	ranges := slices.Clone(e.SourceRanges)
	for _, own := range e.LoadBalancerIPs {
		// A node that holds the address itself comes with it as source.
		if !slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(own) }) {
			ranges = append(ranges, netip.PrefixFrom(own, own.BitLen()))
		}
	}
	var val []byte
	for _, p := range ranges {
		val = ruleset.PutAddr(ruleset.PutAddr(val, p.Addr()), ruleset.LastAddr(p))
	}
	return string(val)
}

// class returns the class of a fact.
func (b *Builder) class(set SetID, val string) Class {
	switch {
	case set < NumSources:
		return Class{set, uint32(len(val) / b.targetLen())}
	case set.Classed():
		return Class{set, nativeMark(val)}
	}
	return Class{Set: set}
}

// expand yields the elements that come from a fact.
func (b *Builder) expand(set SetID, key string, f fact, yield func(Elem) bool) bool {
	c := b.class(set, f.val)
	switch {
	case set < NumSources:
		n := b.targetLen()
		for i := range c.N {
			e := Elem{Class: c, Key: key + string(ruleset.PutMark(nil, i)), Val: f.val[:n]}
			if i == 0 {
				e.Comment = f.owner
			}
			if !yield(e) {
				return false
			}
			f.val = f.val[n:]
		}
		return true
	case set == Firewalled:
		n := Addr.Len(b.cfg.Family)
		for v := f.val; len(v) >= 2*n; v = v[2*n:] {
			if !yield(Elem{Class: Class{Set: FirewallAllowed}, Key: key + v[:n] + key + v[n:2*n]}) {
				return false
			}
		}
		return yield(Elem{Class: c, Key: key})
	}
	return yield(Elem{Class: c, Key: key})
}
