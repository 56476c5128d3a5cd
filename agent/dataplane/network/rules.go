package network

import (
	"net/netip"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Table is the nftables table with the masquerade rules.
const Table = "umiak-network"

const srcNAT = 100 // the priority of everybody's source NAT

// rules returns the table: packets from this node's pods that leave the cluster take the node's address. Where the
// host's route to the addresses of Services leads to the loopback interface (agent/dataplane/serviceroute), what pods
// send to an address that no Service has is rejected. Nothing is accepted in a forward hook: an accept in one table
// does not overrule a drop in another, so it would only look as if it helped (`umiak check` finds such drops).
func rules(pods, cluster []netip.Prefix, serviceRoutes bool) ruleset.Table {
	t := ruleset.Table{Family: ruleset.Inet, Name: Table}
	if len(pods) > 0 {
		post := ruleset.Chain{Name: "postrouting", Hook: &ruleset.Hook{Type: "nat", Name: "postrouting", Priority: srcNAT}}
		for _, p := range pods {
			post.Rules = append(post.Rules, masquerade(p, cluster))
		}
		t.Chains = append(t.Chains, post)
	}
	if serviceRoutes {
		t.Chains = append(t.Chains, ruleset.Chain{
			Name: "forward", Hook: &ruleset.Hook{Type: "filter", Name: "forward"}, Rules: []ruleset.Rule{
				{ruleset.Match{What: ruleset.OutInterface, Value: ruleset.Interface("lo")}, ruleset.NoRoute}},
		})
	}
	return t
}

// masquerade returns the rule for one range of pods.
func masquerade(pods netip.Prefix, cluster []netip.Prefix) ruleset.Rule {
	f := ruleset.FamilyOf(pods.Addr())
	rule := ruleset.Rule{ruleset.Of(f), ruleset.InPrefix{What: ruleset.SaddrOf(f), Prefix: pods}}
	for _, p := range cluster {
		if ruleset.FamilyOf(p.Addr()) == f {
			rule = append(rule, ruleset.InPrefix{What: ruleset.DaddrOf(f), Prefix: p, Not: true})
		}
	}
	return append(rule, ruleset.InPrefix{What: ruleset.DaddrOf(f), Prefix: multicast(f), Not: true}, ruleset.Masquerade{})
}

func multicast(f ruleset.Family) netip.Prefix {
	if f == ruleset.IPv4 {
		return netip.MustParsePrefix("224.0.0.0/4")
	}
	return netip.MustParsePrefix("ff00::/8")
}
