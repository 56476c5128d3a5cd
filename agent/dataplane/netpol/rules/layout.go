package rules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// TableName is the name of our tables, one a family.
const TableName = "umiak-policy"

// The fixed sets and maps. All hold addresses of pods of this node.
var (
	known    = ruleset.SetSpec{Name: "known", Key: []ruleset.Field{ruleset.Addr}}
	isolated = ruleset.SetSpec{Name: "isolated", Key: []ruleset.Field{ruleset.Addr}}
	self     = ruleset.SetSpec{Name: "self", Key: []ruleset.Field{ruleset.Addr, ruleset.Addr}}
	groups   = [2]ruleset.SetSpec{
		{Name: "ingress", Key: []ruleset.Field{ruleset.Addr}, Val: []ruleset.Field{ruleset.ChainName}},
		{Name: "egress", Key: []ruleset.Field{ruleset.Addr}, Val: []ruleset.Field{ruleset.ChainName}},
	}
)

func fixedSets() []ruleset.SetSpec {
	return []ruleset.SetSpec{known, isolated, self, groups[Ingress], groups[Egress]}
}

// Prefixes of the names of sets that come and go.
const (
	peerPrefix  = "peer-"
	blockPrefix = "block-"
	// The sets of a new table are filled in the order of their names: these, which take away from what a block allows,
	// before blocks.
	barredPrefix = "barred-"
	portsPrefix  = "ports-"
	namedPrefix  = "named-"
)

func peerSpec(name string) ruleset.SetSpec {
	return ruleset.SetSpec{Name: name, Key: []ruleset.Field{ruleset.Addr}}
}

// blockSpec has the protocol as a second field, which is always "any": the kernel keeps ranges of one
// field in a kind of set that marks their ends by elements of its own.
func blockSpec(name string) ruleset.SetSpec {
	return ruleset.SetSpec{Name: name, Key: []ruleset.Field{ruleset.Addr, ruleset.Proto}, Ranges: true}
}

func portsSpec(name string, ranges bool) ruleset.SetSpec {
	return ruleset.SetSpec{Name: name, Key: []ruleset.Field{ruleset.Proto, ruleset.Port}, Ranges: ranges}
}

func namedSpec(name string) ruleset.SetSpec {
	return ruleset.SetSpec{Name: name, Key: []ruleset.Field{ruleset.Addr, ruleset.Proto, ruleset.Port}}
}

func namedSet(protocol uint8, name string) string {
	return namedPrefix + ruleset.ProtoName(protocol) + "-" + name
}

// policyChain is the chain with what a policy allows.
func policyChain(d Direction, policy string) string {
	const most = 120
	if len(policy) > most {
		policy = policy[:most-17] + "-" + short(policy)
	}
	return [...]string{Ingress: "in-", Egress: "out-"}[d] + policy
}

// groupChain is the chain for pods that have all these policies.
func groupChain(d Direction, policies []string) string {
	return [...]string{Ingress: "pods-in-", Egress: "pods-out-"}[d] + short(fmt.Sprintf("%q", policies))
}

func peerTerm(d Direction) ruleset.Load {
	if d == Ingress {
		return ruleset.Saddr
	}
	return ruleset.Daddr
}

func in(set string, key ...ruleset.Term) ruleset.Stmt { return ruleset.InSet{Key: key, Set: set} }

const (
	accept = ruleset.Verdict("accept")
	drop   = ruleset.Verdict("drop")
)

// base returns the fixed chains of a family.
//
// They are at the forward hook, which sees packets with their real source and the endpoint that they go
// to: destination NAT is before it and source NAT behind it. Two chains, one after the other, because a
// packet between two pods of this node must be let out of the one and into the other: what one chain
// accepts goes on to the next. Their priorities are behind the service proxy's (-110), which refuses
// what has no endpoint, and before a host's own firewall (0).
//
// What the node itself sends and receives passes other hooks, so nothing here concerns it.
func base(f ruleset.Family, local []netip.Prefix) []ruleset.Chain {
	pass := []ruleset.Rule{{ruleset.Established{}, accept}}
	if f == ruleset.IPv6 {
		// Between pods of one bridge these come by here, too.
		pass = append(pass, ruleset.Rule{ruleset.Neighbor{}, accept})
	}
	pass = append(pass, ruleset.Rule{in(self.Name, ruleset.Saddr, ruleset.Daddr), accept})
	chain := func(name string, prio int32, what ruleset.Load, d Direction, more ...ruleset.Rule) ruleset.Chain {
		c := ruleset.Chain{Name: name, Hook: &ruleset.Hook{Type: "filter", Name: "forward", Priority: prio}}
		c.Rules = append(slices.Clone(pass), more...)
		for _, p := range local {
			if f.Has(p.Addr()) {
				// A pod that has just started, whose policies are not known yet.
				c.Rules = append(c.Rules, ruleset.Rule{ruleset.InPrefix{What: what, Prefix: p.Masked()},
					ruleset.InSet{Key: []ruleset.Term{what}, Set: known.Name, Not: true}, ruleset.Count{}, drop})
			}
		}
		c.Rules = append(c.Rules, ruleset.Rule{ruleset.Lookup{Key: []ruleset.Term{what}, Map: groups[d].Name}})
		return c
	}
	return []ruleset.Chain{
		chain("filter-egress", -90, ruleset.Saddr, Egress,
			ruleset.Rule{in(isolated.Name, ruleset.Saddr), ruleset.Jump{Chain: "new-connection"}},
			ruleset.Rule{in(isolated.Name, ruleset.Daddr), ruleset.Jump{Chain: "new-connection"}}),
		chain("filter-ingress", -89, ruleset.Daddr, Ingress),
		// A connection that was forbidden while it was open is removed from conntrack. Its next packet may be an
		// answer, which would begin a connection in the other direction. So the first packet of a connection has to
		// look like one. A TCP sender gets a reset, which ends the connection at once.
		{Name: "new-connection", Rules: []ruleset.Rule{
			{ruleset.Invalid{}, ruleset.Count{}, drop},
			{ruleset.Midstream{}, ruleset.Count{}, ruleset.Reject{Reset: true}},
			{ruleset.NoInit{}, ruleset.Count{}, drop},
		}},
	}
}
