package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// useNamed counts one more user of the set of pods' ports of a name.
func (b *Builder) useNamed(protocol uint8, name string) string {
	set := namedSet(protocol, name)
	if b.out.addSet(namedSpec(set)) {
		for key := range b.named[set] {
			b.out.element(set, key, "", true)
		}
	}
	return set
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

// peerMatches are the ways in which a packet can be from, or for, one of the peers: at most two, however many peers
// there are, since each is multiplied by the ways of the ports.
func (b *Builder) peerMatches(p *policy, d Direction, peers []Peer) []ruleset.Rule {
	if len(peers) == 0 {
		return []ruleset.Rule{nil}
	}
	what := peerTerm(d)
	var out []ruleset.Rule
	var blocks []Peer
	selectors := map[*selector]bool{}
	for _, x := range peers {
		if x.Block.IsValid() {
			blocks = append(blocks, x)
		} else {
			selectors[b.acquire(p.Namespace, x.Namespaces, x.Pods)] = true
		}
	}
	if len(selectors) > 0 {
		set := b.usePeers(slices.SortedFunc(maps.Keys(selectors),
			func(x, y *selector) int { return strings.Compare(x.key, y.key) }))
		p.uses.peers = append(p.uses.peers, set)
		out = append(out, ruleset.Rule{in(set.name, what)})
	}
	allowed, barred := ranges(blocks)
	if len(allowed) == 0 {
		return out
	}
	match := ruleset.Rule{in(b.useRanges(p, blockPrefix, allowed), what, ruleset.L4)}
	if len(barred) > 0 {
		match = append(match, ruleset.InSet{Key: []ruleset.Term{what, ruleset.L4},
			Set: b.useRanges(p, barredPrefix, barred), Not: true})
	}
	return append(out, match)
}

// useRanges counts one more user of a set of ranges.
func (b *Builder) useRanges(p *policy, prefix string, all []span) string {
	var name strings.Builder
	for _, s := range all {
		name.WriteString(s.from.String() + "-" + s.to.String() + " ")
	}
	set := prefix + short(name.String())
	if b.out.addSet(blockSpec(set)) {
		for _, s := range all {
			from, to := ruleset.PutProto(s.from.AsSlice(), 0), ruleset.PutProto(s.to.AsSlice(), 255)
			b.out.element(set, string(from)+string(to), "", true)
		}
	}
	p.uses.static = append(p.uses.static, set)
	return set
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
	seen := map[string]bool{}
	for _, n := range ports {
		if n.Name == "" || seen[namedSet(n.Protocol, n.Name)] {
			continue
		}
		set := b.useNamed(n.Protocol, n.Name)
		seen[set] = true
		p.uses.named = append(p.uses.named, set)
		// The named port is the receiver's: the pod's, or the peer's.
		out = append(out, ruleset.Rule{in(set, ruleset.Daddr, ruleset.L4, ruleset.Dport)})
	}
	return out
}
