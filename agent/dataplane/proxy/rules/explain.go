package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Fact is one thing that the table holds of a Service port, in words and as elements.
type Fact struct {
	// Where is the address and port that it is about.
	Where string `json:"where"`
	Words string `json:"words"`
	Elems []Elem `json:"-"`
}

// Explain describes the table's elements of a Service port, address by address.
func (b *Builder) Explain(name string) []Fact {
	e := b.ports[name]
	if e == nil {
		return nil
	}
	var out []Fact
	b.wanted(e, func(set SetID, key, val string) {
		f := Fact{Where: b.where(set, key), Words: b.words(set, key, val)}
		b.expand(set, key, fact{val, e.Name}, func(el Elem) bool { f.Elems = append(f.Elems, el); return true })
		out = append(out, f)
	})
	return out
}

func (b *Builder) where(set SetID, key string) string {
	n := Addr.Len(b.cfg.Family)
	switch set {
	case ClusterIPs, Hairpin:
		return ruleset.Decode(b.cfg.Family, []Field{Addr}, key[:n])
	case NodePorts, NodePortsCluster, MasqNodePorts, LocalNodePorts, RejectNodePorts, DropNodePorts, StickyNodePorts:
		return "node port " + portOf(key) + "/" + ruleset.ProtoName(key[0])
	}
	a, _ := netip.AddrFromSlice([]byte(key[:n]))
	host := a.String()
	if a.Is6() {
		host = "[" + host + "]"
	}
	return host + ":" + portOf(key[n:]) + "/" + ruleset.ProtoName(key[n])
}

func portOf(protoPort string) string { return ruleset.Decode(IPv4, []Field{Port}, protoPort[4:]) }

func (b *Builder) words(set SetID, key, val string) string {
	switch set {
	case Services, NodePorts:
		return "a new connection goes to " + b.oneOf(val)
	case ServicesCluster, NodePortsCluster:
		return "from a pod or from this node it goes to " + b.oneOf(val)
	case ClusterIPs:
		return "ports that the Service does not have are refused; clients that are not pods are masqueraded, so that answers come back this way"
	case MasqServices, MasqNodePorts:
		return "clients are masqueraded (externalTrafficPolicy Cluster): endpoints see this node's address"
	case LocalServices, LocalNodePorts:
		return "clients on this node are masqueraded; others are seen by the endpoint as they are (externalTrafficPolicy Local)"
	case RejectServices, RejectNodePorts:
		return "refused: there is no endpoint"
	case DropServices, DropNodePorts:
		return "dropped: the traffic policy is Local, and the endpoints are on other nodes"
	case StickyServices, StickyNodePorts:
		return fmt.Sprintf("a client stays with its endpoint for %d s (sessionAffinity ClientIP)", nativeMark(val))
	case Firewalled:
		var ranges []string
		n := Addr.Len(b.cfg.Family)
		for v := val; len(v) >= 2*n; v = v[2*n:] {
			r := ruleset.Decode(b.cfg.Family, []Field{Addr}, v[:n])
			if v[:n] != v[n:2*n] {
				r += "-" + ruleset.Decode(b.cfg.Family, []Field{Addr}, v[n:2*n])
			}
			ranges = append(ranges, r)
		}
		return "only from " + strings.Join(ranges, ", ") + " (loadBalancerSourceRanges); others are dropped"
	case Hairpin:
		return "this endpoint may be its own client: it is masqueraded then"
	}
	return set.Spec().Name
}

// oneOf lists endpoints.
func (b *Builder) oneOf(val string) string {
	var eps []string
	n := b.targetLen()
	for v := val; len(v) >= n; v = v[n:] {
		a, _ := netip.AddrFromSlice([]byte(v[:n-4]))
		eps = append(eps, netip.AddrPortFrom(a, uint16(v[n-4])<<8|uint16(v[n-3])).String())
	}
	slices.Sort(eps)
	if len(eps) == 1 {
		return eps[0]
	}
	if len(eps) > 8 {
		return fmt.Sprintf("one of %d endpoints, at random", len(eps))
	}
	return "one of these, at random: " + strings.Join(eps, ", ")
}
