package peerports

import (
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Table is the nftables table.
const Table = "umiak-peers"

const (
	chainInput = "input"
	vxlanPort  = 8472
)

// The flags of the TCP header: those that tell the packets of a connection apart, and that of its first packet.
var (
	tcpFlags = ruleset.Byte(0x01 | 0x02 | 0x04 | 0x10).Named("(fin | syn | rst | ack)")
	tcpSyn   = ruleset.Byte(0x02).Named("syn")
)

// Rules describe what a node accepts.
type Rules struct {
	// Kubelet is the kubelet's port; 0 leaves it open.
	Kubelet int
	// VXLAN closes vxlan's port.
	VXLAN bool
	// Peers are the addresses of nodes and servers.
	Peers []netip.Addr
	// Ranges may connect to the kubelet as well: pods, and what the settings name.
	Ranges []netip.Prefix
}

// Refused counts what was not let in since the rules in question were written.
type Refused struct{ Kubelet, VXLAN uint64 }

// Empty reports whether nothing is closed, which needs no table.
func (r Rules) Empty() bool { return r.Kubelet == 0 && !r.VXLAN }

var families = []ruleset.Family{ruleset.IPv4, ruleset.IPv6}

// set returns the set of the nodes' addresses of a family.
func set(f ruleset.Family) ruleset.SetSpec {
	if f == ruleset.IPv6 {
		return ruleset.SetSpec{Name: "nodes6", Key: []ruleset.Field{ruleset.Addr6}}
	}
	return ruleset.SetSpec{Name: "nodes4", Key: []ruleset.Field{ruleset.Addr4}}
}

// Table returns the table with the rules.
func (r Rules) Table() ruleset.Table {
	t := ruleset.Table{Family: ruleset.Inet, Name: Table}
	for _, f := range families {
		t.Sets = append(t.Sets, set(f))
	}
	for _, a := range slices.Compact(slices.SortedFunc(slices.Values(r.Peers), netip.Addr.Compare)) {
		t.Elems = append(t.Elems, ruleset.Elem{Set: set(ruleset.FamilyOf(a)).Name, Key: string(ruleset.PutAddr(nil, a))})
	}
	in := []ruleset.Rule{{ruleset.Match{What: ruleset.InInterface, Value: ruleset.Interface("lo")}, ruleset.Accept}}
	if r.VXLAN {
		for _, f := range families {
			in = append(in, vxlan(f))
		}
	}
	if r.Kubelet != 0 {
		begins := r.begins()
		for _, f := range families {
			in = append(in, append(begins, ruleset.Of(f), fromNode(f, false), ruleset.Accept))
		}
		for _, p := range r.Ranges {
			f := ruleset.FamilyOf(p.Addr())
			from := ruleset.InPrefix{What: ruleset.SaddrOf(f), Prefix: p}
			in = append(in, append(begins, ruleset.Of(f), from, ruleset.Accept))
		}
		in = append(in, r.refuse())
	}
	t.Chains = []ruleset.Chain{{Name: chainInput, Hook: &ruleset.Hook{Type: "filter", Name: "input"}, Rules: in}}
	return t
}

// vxlan drops the packets of vxlan from machines that are no nodes.
func vxlan(f ruleset.Family) ruleset.Rule {
	return ruleset.Rule{ruleset.Protocol(ruleset.UDP), ruleset.ToPort(vxlanPort), ruleset.Of(f), fromNode(f, true),
		ruleset.Count{}, ruleset.Drop}
}

// refuse is the last rule: it refuses connections to the kubelet.
func (r Rules) refuse() ruleset.Rule { return append(r.begins(), ruleset.Count{}, ruleset.Prohibited) }

// begins matches the first packet of a connection to the kubelet. Rules may append to it.
func (r Rules) begins() ruleset.Rule {
	return slices.Clip(ruleset.Rule{ruleset.Protocol(ruleset.TCP), ruleset.ToPort(uint16(r.Kubelet)),
		ruleset.Match{What: ruleset.TCPFlags, Mask: tcpFlags, Value: tcpSyn}})
}

// fromNode matches packets whose source is a node's address, or is not.
func fromNode(f ruleset.Family, not bool) ruleset.InSet {
	return ruleset.InSet{Key: []ruleset.Term{ruleset.SaddrOf(f)}, Set: set(f).Name, Not: not}
}

// Counts reads what the rules have not let in.
func (r Rules) Counts() (out Refused, err error) {
	conn, err := netfilter.Dial()
	if err != nil {
		return out, err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	t := netfilter.Table{Conn: conn, Family: ruleset.Inet, Name: Table}
	rules, err := t.Rules(chainInput)
	if err != nil {
		return out, err
	}
	for _, have := range rules {
		switch have.Digest {
		case netfilter.Digest(vxlan(ruleset.IPv4)), netfilter.Digest(vxlan(ruleset.IPv6)):
			out.VXLAN += have.Packets
		case netfilter.Digest(r.refuse()):
			out.Kubelet += have.Packets
		}
	}
	return out, nil
}
