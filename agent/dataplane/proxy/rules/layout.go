package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/packetmark"
)

// TableName is the name of our tables, one a family. Nothing outside of them is ever touched.
const TableName = "umiak-proxy"

// SetID names a set or map of the table.
type SetID uint8

// The sets and maps. "Cluster" are those for clients on this node and in pods, where a traffic policy is
// Local: to them an external address is just the Service.
//
// Of the first four, the sources, there is a map for each number of endpoints that occurs, and a rule for each
// such map: services-3 holds, for every Service with three endpoints, (address, protocol, port, 0 to 2).
// Nothing of this is a verdict, because whenever a verdict is added the kernel walks all of them before
// it commits. And there is no map that says which rule is next, because the nft program (1.0.6) aborts
// when it lists a rule that uses the result of a map as a key, and a table that breaks "nft list ruleset"
// is no good neighbour. What a packet pays is a lookup for each number of endpoints that occurs, on the
// first packet of a connection.
const (
	Services         SetID = iota // address, protocol, port, slot -> address and port
	ServicesCluster               //
	NodePorts                     // protocol, port, slot -> address and port
	NodePortsCluster              //
	ClusterIPs
	MasqServices
	MasqNodePorts
	LocalServices
	LocalNodePorts
	RejectServices
	RejectNodePorts
	DropServices
	DropNodePorts
	StickyServices  // address, protocol, port; a set for each number of seconds that clients stay
	StickyNodePorts // protocol, port
	Firewalled      // address, protocol, port
	FirewallAllowed // address, protocol, port, range of sources: the key is the first key, then the last one
	Hairpin
	NumSets
)

// NumSources is the number of the first sets that have a map for each number of endpoints.
const NumSources = 4

var (
	vipKey  = []Field{Addr, Proto, Port}
	portKey = []Field{Proto, Port}
	target  = []Field{Addr, Port}
)

// specs are indexed by SetID.
var specs = [NumSets]SetSpec{
	Services:         {Name: "services", Key: []Field{Addr, Proto, Port, Mark}, Val: target},
	ServicesCluster:  {Name: "services-cluster", Key: []Field{Addr, Proto, Port, Mark}, Val: target},
	NodePorts:        {Name: "node-ports", Key: []Field{Proto, Port, Mark}, Val: target},
	NodePortsCluster: {Name: "node-ports-cluster", Key: []Field{Proto, Port, Mark}, Val: target},
	ClusterIPs:       {Name: "cluster-ips", Key: []Field{Addr}},
	MasqServices:     {Name: "masq-services", Key: vipKey},
	MasqNodePorts:    {Name: "masq-node-ports", Key: portKey},
	LocalServices:    {Name: "local-services", Key: vipKey},
	LocalNodePorts:   {Name: "local-node-ports", Key: portKey},
	RejectServices:   {Name: "reject-services", Key: vipKey},
	RejectNodePorts:  {Name: "reject-node-ports", Key: portKey},
	DropServices:     {Name: "drop-services", Key: vipKey},
	DropNodePorts:    {Name: "drop-node-ports", Key: portKey},
	StickyServices:   {Name: "sticky-services", Key: vipKey},
	StickyNodePorts:  {Name: "sticky-node-ports", Key: portKey},
	Firewalled:       {Name: "firewalled", Key: vipKey},
	FirewallAllowed:  {Name: "firewall-allowed", Key: []Field{Addr, Proto, Port, Addr}, Ranges: true},
	Hairpin:          {Name: "hairpin", Key: []Field{Addr, Addr}},
}

// The maps that remember clients. Node ports have one of their own: what is found in the first one is
// translated before it is known that the packet is for a node port.
var (
	affinity          = SetSpec{Name: "affinity", Key: []Field{Addr, Addr, Proto, Port}, Val: target, Dynamic: true}
	affinityNodePorts = SetSpec{Name: "affinity-node-ports", Key: []Field{Addr, Addr, Proto, Port}, Val: target,
		Dynamic: true}
)

// Affinity describes the maps that remember clients: client, address, protocol and port -> endpoint.
func Affinity() []SetSpec { return []SetSpec{affinity, affinityNodePorts} }

// Spec describes the set with this id.
func (id SetID) Spec() SetSpec { return specs[id] }

var (
	vip     = []Term{Daddr, L4, Dport}
	ports   = []Term{L4, Dport}
	origVIP = []Term{OrigDaddr, L4, OrigDport}
)

// OwnPasses is the first rule of OwnChains, those that see what this machine sends: umiak's own connections to
// servers pass before any Service is looked at, so that no rule, also a stale one, cuts the node off.
var (
	OwnPasses = Rule{Marked{Mark: packetmark.Mark}, Verdict("accept")}
	OwnChains = []string{"nat-output", "firewall-output", "filter-output"}
)

// Layout returns the fixed chains of the table.
//
// Priorities, and why: destination NAT is at dstnat (-100), where everybody's is. The firewall for load
// balancer addresses must see the original destination, so it runs at -110, before NAT. What rejects
// runs after NAT (forward and input are, output at -90), so that whatever was translated no longer has
// the Service's address, and at -110 in forward and input, so that a host firewall, usually at 0, can
// neither drop what should be refused at once nor has to know of Services. Source NAT is just before
// srcnat (100): once any chain has chosen a source for a connection, the later ones are not asked.
func (c Config) Layout() []Chain {
	mark := c.Mark()
	name := func(id SetID) string { return specs[id].Name }
	base := func(name, typ, hook string, prio int32, rules ...Rule) Chain {
		return Chain{Name: name, Hook: &Hook{Type: typ, Name: hook, Priority: prio}, Rules: rules}
	}
	jump := func(chain string, match ...Stmt) Rule { return append(Rule(match), Jump{Chain: chain}) }

	// dispatch finds an endpoint for a packet. A client that is known gets the one that it had. Clients in
	// pods and on this node reach all endpoints also where others get local ones only.
	dispatch := func(all, cluster, masq, local SetID, key []Term, known SetSpec) []Rule {
		out := []Rule{
			{InSet{Key: key, Set: name(masq)}, SetMark{Mark: mark}},
			{Local{What: Saddr}, InSet{Key: key, Set: name(local)}, SetMark{Mark: mark}},
			{DNAT{To: MapOf{Key: append([]Term{Saddr}, vip...), Map: known.Name}}},
		}
		for _, p := range c.PodCIDRs {
			out = append(out, jump("to-"+name(cluster), InPrefix{What: Saddr, Prefix: p}))
		}
		return append(out, jump("to-"+name(cluster), Local{What: Saddr}), jump("to-"+name(all)))
	}
	services := dispatch(Services, ServicesCluster, MasqServices, LocalServices, vip, affinity)
	if len(c.PodCIDRs) > 0 {
		outside := Rule{}
		for _, p := range c.PodCIDRs {
			outside = append(outside, InPrefix{What: Saddr, Prefix: p, Not: true})
		}
		outside = append(outside, InSet{Key: []Term{Daddr}, Set: name(ClusterIPs)}, SetMark{Mark: mark})
		services = append([]Rule{outside}, services...)
	}
	// isNodePort guards what looks at ports alone.
	isNodePort := func(chain string) []Rule {
		if len(c.NodePortAddresses) == 0 {
			loopback := netip.MustParsePrefix("127.0.0.0/8")
			if c.Family == IPv6 {
				loopback = netip.MustParsePrefix("::1/128")
			}
			return []Rule{jump(chain, Local{What: Daddr}, InPrefix{What: Daddr, Prefix: loopback, Not: true})}
		}
		var out []Rule
		for _, p := range c.NodePortAddresses {
			out = append(out, jump(chain, Local{What: Daddr}, InPrefix{What: Daddr, Prefix: p}))
		}
		return out
	}
	services = append(services, isNodePort("node-ports")...)
	refuse := func(drop, reject SetID, key []Term) []Rule {
		return []Rule{
			{InSet{Key: key, Set: name(drop)}, Verdict("drop")},
			jump("refuse", InSet{Key: key, Set: name(reject)}),
		}
	}
	refuseServices := append(refuse(DropServices, RejectServices, vip),
		jump("refuse", InSet{Key: []Term{Daddr}, Set: name(ClusterIPs)}))
	own := func(in ...Rule) []Rule {
		return append([]Rule{OwnPasses}, in...)
	}
	firewall := []Rule{{New{}, InSet{Key: vip, Set: name(Firewalled)},
		InSet{Key: []Term{Daddr, L4, Dport, Saddr}, Set: name(FirewallAllowed), Not: true}, Verdict("drop")}}
	newOnly := func(in []Rule) []Rule {
		out := []Rule{jump("refuse-services", New{})}
		for _, r := range in {
			out = append(out, append(Rule{New{}}, r...))
		}
		return out
	}

	return []Chain{
		{Name: "services", Rules: services},
		{Name: "node-ports", Rules: dispatch(NodePorts, NodePortsCluster, MasqNodePorts, LocalNodePorts, ports,
			affinityNodePorts)},
		{Name: "masquerading", Rules: []Rule{
			jump("remember", Translated{}),
			{Translated{}, InSet{Key: []Term{Saddr, Daddr}, Set: name(Hairpin)}, Masquerade{}},
			{Marked{Mark: mark}, ClearMark{Mark: mark}, Masquerade{}},
		}},
		{Name: "refuse", Rules: []Rule{{IsTCP{}, Reject{Reset: true}}, {Reject{}}}},
		{Name: "refuse-services", Rules: refuseServices},
		{Name: "refuse-node-ports", Rules: refuse(DropNodePorts, RejectNodePorts, ports)},
		base("nat-prerouting", "nat", "prerouting", -100, jump("services")),
		base("nat-output", "nat", "output", -100, own(jump("services"))...),
		base("nat-postrouting", "nat", "postrouting", 99, jump("masquerading")),
		base("firewall-prerouting", "filter", "prerouting", -110, firewall...),
		base("firewall-output", "filter", "output", -110, own(firewall...)...),
		base("filter-input", "filter", "input", -110, newOnly(isNodePort("refuse-node-ports"))...),
		base("filter-forward", "filter", "forward", -110, newOnly(nil)...),
		base("filter-output", "filter", "output", -90, own(newOnly(isNodePort("refuse-node-ports"))...)...),
	}
}

// Mark is the bit of the packet mark in use.
func (c Config) Mark() uint32 {
	if c.MasqueradeMark == 0 {
		return 0x4000
	}
	return c.MasqueradeMark
}

// Class is a map that there is one of for each number of endpoints (of a source), or for each length of
// affinity (of a sticky set).
type Class struct {
	Set SetID
	N   uint32
}

// Spec describes the map or set.
func (c Class) Spec() SetSpec {
	s := specs[c.Set]
	if c.Set.Classed() {
		s.Name = fmt.Sprintf("%s-%d", s.Name, c.N)
	}
	return s
}

// ParseClass is the class whose set has this name.
func ParseClass(name string) (Class, bool) {
	i := strings.LastIndexByte(name, '-')
	n, err := strconv.ParseUint(name[i+1:], 10, 32)
	if err != nil || i < 0 {
		return Class{}, false
	}
	for id := range NumSets {
		if c := (Class{id, uint32(n)}); id.Classed() && c.Spec().Name == name {
			return c, true
		}
	}
	return Class{}, false
}

// Classed reports whether there are classes of a set.
func (id SetID) Classed() bool {
	return id < NumSources || id == StickyServices || id == StickyNodePorts
}

// Variable returns the chains whose rules depend on which classes there are.
func (c Config) Variable(classes []Class) []Chain {
	byName := map[string]*Chain{"remember": {Name: "remember"}}
	for id := range SetID(NumSources) {
		byName["to-"+specs[id].Name] = &Chain{Name: "to-" + specs[id].Name}
	}
	for _, x := range classes {
		var ch *Chain
		var r Rule
		switch {
		case x.Set < NumSources:
			key := vip
			if x.Set >= NodePorts {
				key = ports
			}
			ch = byName["to-"+specs[x.Set].Name]
			r = Rule{DNAT{To: MapOf{Key: append(slices.Clone(key), Random{Below: x.N}), Map: x.Spec().Name}}}
		default:
			// The endpoint is remembered once the packet is on its way there. What a node port is called
			// on, a Service that has the number as its own port is not taken for.
			ch = byName["remember"]
			match, known := Rule{InSet{Key: origVIP, Set: x.Spec().Name}}, affinity
			if x.Set == StickyNodePorts {
				match = Rule{InSet{Key: []Term{OrigDaddr}, Set: specs[ClusterIPs].Name, Not: true},
					InSet{Key: []Term{L4, OrigDport}, Set: x.Spec().Name}}
				known = affinityNodePorts
			}
			r = append(slices.Clip(match), Remember{Set: known.Name,
				Key: append([]Term{Saddr}, origVIP...), Timeout: time.Duration(x.N) * time.Second,
				Data: []Term{Daddr, Dport}})
		}
		ch.Rules = append(ch.Rules, r)
	}
	out := []Chain{*byName["remember"]}
	for id := range SetID(NumSources) {
		out = append(out, *byName["to-"+specs[id].Name])
	}
	return out
}
