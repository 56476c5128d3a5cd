package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
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

// NumSources is how many of the first sets have a map for each number of endpoints.
const NumSources = 4

// SetSpec describes a set or map.
type SetSpec struct {
	Name string
	Key  []Field
	// Val is what a map gives; empty for a set.
	Val []Field
	// Ranges says that keys are ranges.
	Ranges bool
	// Dynamic says that packets add elements, which time out.
	Dynamic bool
}

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
	affinityNodePorts = SetSpec{Name: "affinity-node-ports", Key: []Field{Addr, Addr, Proto, Port}, Val: target, Dynamic: true}
)

// Affinity describes the maps that remember clients: client, address, protocol and port -> endpoint.
func Affinity() []SetSpec { return []SetSpec{affinity, affinityNodePorts} }

// Spec describes the set with this id.
func (id SetID) Spec() SetSpec { return specs[id] }

// Hook is where a base chain gets its packets.
type Hook struct {
	Type     string // nat or filter
	Name     string // prerouting, input, forward, output, postrouting
	Priority int32
}

// Chain is a chain and its rules. Hook is nil for one that others jump to.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Rule is a list of statements.
type Rule []Stmt

// String writes the rule as nft does.
func (r Rule) String() string {
	parts := make([]string, len(r))
	for i, s := range r {
		parts[i] = fmt.Sprint(s)
	}
	return strings.Join(parts, " ")
}

// Term is something that a rule looks at: it ends up in registers.
type Term interface{ fmt.Stringer }

// Load is a Term out of the packet.
type Load string

// What can be loaded.
const (
	Saddr Load = "ip saddr"
	Daddr Load = "ip daddr"
	L4    Load = "meta l4proto"
	Dport Load = "th dport"
	// What the packet was addressed to before NAT.
	OrigDaddr Load = "ct original daddr"
	OrigDport Load = "ct original proto-dst"
)

func (l Load) String() string { return string(l) }

// Random is a Term: a number from 0 up to, not including, Below.
type Random struct{ Below uint32 }

func (r Random) String() string { return fmt.Sprintf("numgen random mod %d", r.Below) }

// MapOf is a Term: what the map gives for the key. A key that is not there ends the rule.
type MapOf struct {
	Key []Term
	Map string
}

func (m MapOf) String() string { return join(m.Key) + " map @" + m.Map }

func join(t []Term) string {
	parts := make([]string, len(t))
	for i, x := range t {
		parts[i] = x.String()
	}
	return strings.Join(parts, " . ")
}

// Stmt is a statement of a rule: one of the types below.
type Stmt interface{ fmt.Stringer }

type (
	// InPrefix matches an address.
	InPrefix struct {
		What   Load
		Prefix netip.Prefix
		Not    bool
	}
	// Local matches if the address is one of this machine's.
	Local struct{ What Load }
	// InSet matches if the key is in the set.
	InSet struct {
		Key []Term
		Set string
		Not bool
	}
	// New matches the first packet of a connection.
	New struct{}
	// Translated matches connections whose destination was changed.
	Translated struct{}
	// IsTCP matches TCP.
	IsTCP struct{}
	// Marked matches packets that have the mark bit.
	Marked struct{ Mark uint32 }
	// SetMark sets the mark bit.
	SetMark struct{ Mark uint32 }
	// ClearMark takes the mark bit away, where it is known to be set.
	ClearMark struct{ Mark uint32 }
	// DNAT sends the connection to the address and port that To gives.
	DNAT struct{ To MapOf }
	// Remember puts Data under Key into a dynamic map if the key is not there, and starts its time-out
	// anew.
	Remember struct {
		Set     string
		Key     []Term
		Timeout time.Duration
		Data    []Term
	}
	// Masquerade gives the connection an address of this machine as source.
	Masquerade struct{}
	// Reject answers with a port-unreachable error, or for TCP with a reset.
	Reject struct{ Reset bool }
	// Jump runs another chain and comes back.
	Jump struct{ Chain string }
	// Verdict is drop, accept or return.
	Verdict string
)

func not(b bool) string {
	if b {
		return " !="
	}
	return ""
}
func (s InPrefix) String() string { return fmt.Sprintf("%s%s %s", s.What, not(s.Not), s.Prefix) }
func (s Local) String() string {
	return "fib " + strings.TrimPrefix(s.What.String(), "ip ") + " type local"
}
func (s InSet) String() string     { return fmt.Sprintf("%s%s @%s", join(s.Key), not(s.Not), s.Set) }
func (New) String() string         { return "ct state new" }
func (Translated) String() string  { return "ct status dnat" }
func (IsTCP) String() string       { return "meta l4proto tcp" }
func (s Marked) String() string    { return fmt.Sprintf("meta mark & 0x%08x != 0x0", s.Mark) }
func (s SetMark) String() string   { return fmt.Sprintf("meta mark set meta mark | 0x%08x", s.Mark) }
func (s ClearMark) String() string { return fmt.Sprintf("meta mark set meta mark ^ 0x%08x", s.Mark) }
func (s DNAT) String() string      { return "dnat to " + s.To.String() }
func (Masquerade) String() string  { return "masquerade fully-random" }
func (s Jump) String() string      { return "jump " + s.Chain }
func (s Verdict) String() string   { return string(s) }
func (s Remember) String() string {
	return fmt.Sprintf("update @%s { %s timeout %s : %s }", s.Set, join(s.Key), s.Timeout, join(s.Data))
}
func (s Reject) String() string {
	if s.Reset {
		return "reject with tcp reset"
	}
	return "reject"
}

var (
	vip     = []Term{Daddr, L4, Dport}
	ports   = []Term{L4, Dport}
	origVIP = []Term{OrigDaddr, L4, OrigDport}
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
	jump := func(chain string, match ...Stmt) Rule { return append(Rule(match), Jump{chain}) }

	// dispatch finds an endpoint for a packet. A client that is known gets the one that it had. Clients in
	// pods and on this node reach all endpoints also where others get local ones only.
	dispatch := func(all, cluster, masq, local SetID, key []Term, known SetSpec) []Rule {
		out := []Rule{
			{InSet{key, name(masq), false}, SetMark{mark}},
			{Local{Saddr}, InSet{key, name(local), false}, SetMark{mark}},
			{DNAT{MapOf{append([]Term{Saddr}, vip...), known.Name}}},
		}
		for _, p := range c.PodCIDRs {
			out = append(out, jump("to-"+name(cluster), InPrefix{Saddr, p, false}))
		}
		return append(out, jump("to-"+name(cluster), Local{Saddr}), jump("to-"+name(all)))
	}
	services := dispatch(Services, ServicesCluster, MasqServices, LocalServices, vip, affinity)
	if len(c.PodCIDRs) > 0 {
		outside := Rule{}
		for _, p := range c.PodCIDRs {
			outside = append(outside, InPrefix{Saddr, p, true})
		}
		outside = append(outside, InSet{[]Term{Daddr}, name(ClusterIPs), false}, SetMark{mark})
		services = append([]Rule{outside}, services...)
	}
	// isNodePort guards what looks at ports alone.
	isNodePort := func(chain string) []Rule {
		if len(c.NodePortAddresses) == 0 {
			loopback := netip.MustParsePrefix("127.0.0.0/8")
			if c.Family == IPv6 {
				loopback = netip.MustParsePrefix("::1/128")
			}
			return []Rule{jump(chain, Local{Daddr}, InPrefix{Daddr, loopback, true})}
		}
		var out []Rule
		for _, p := range c.NodePortAddresses {
			out = append(out, jump(chain, Local{Daddr}, InPrefix{Daddr, p, false}))
		}
		return out
	}
	services = append(services, isNodePort("node-ports")...)
	refuse := func(drop, reject SetID, key []Term) []Rule {
		return []Rule{
			{InSet{key, name(drop), false}, Verdict("drop")},
			jump("refuse", InSet{key, name(reject), false}),
		}
	}
	refuseServices := append(refuse(DropServices, RejectServices, vip), jump("refuse", InSet{[]Term{Daddr}, name(ClusterIPs), false}))
	firewall := []Rule{{New{}, InSet{vip, name(Firewalled), false},
		InSet{[]Term{Daddr, L4, Dport, Saddr}, name(FirewallAllowed), true}, Verdict("drop")}}
	newOnly := func(in []Rule) []Rule {
		out := []Rule{jump("refuse-services", New{})}
		for _, r := range in {
			out = append(out, append(Rule{New{}}, r...))
		}
		return out
	}

	return []Chain{
		{Name: "services", Rules: services},
		{Name: "node-ports", Rules: dispatch(NodePorts, NodePortsCluster, MasqNodePorts, LocalNodePorts, ports, affinityNodePorts)},
		{Name: "masquerading", Rules: []Rule{
			jump("remember", Translated{}),
			{Translated{}, InSet{[]Term{Saddr, Daddr}, name(Hairpin), false}, Masquerade{}},
			{Marked{mark}, ClearMark{mark}, Masquerade{}},
		}},
		{Name: "refuse", Rules: []Rule{{IsTCP{}, Reject{Reset: true}}, {Reject{}}}},
		{Name: "refuse-services", Rules: refuseServices},
		{Name: "refuse-node-ports", Rules: refuse(DropNodePorts, RejectNodePorts, ports)},
		base("nat-prerouting", "nat", "prerouting", -100, jump("services")),
		base("nat-output", "nat", "output", -100, jump("services")),
		base("nat-postrouting", "nat", "postrouting", 99, jump("masquerading")),
		base("firewall-prerouting", "filter", "prerouting", -110, firewall...),
		base("firewall-output", "filter", "output", -110, firewall...),
		base("filter-input", "filter", "input", -110, newOnly(isNodePort("refuse-node-ports"))...),
		base("filter-forward", "filter", "forward", -110, newOnly(nil)...),
		base("filter-output", "filter", "output", -90, newOnly(isNodePort("refuse-node-ports"))...),
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
			r = Rule{DNAT{MapOf{append(slices.Clone(key), Random{x.N}), x.Spec().Name}}}
		default:
			// The endpoint is remembered once the packet is on its way there. What a node port is called
			// on, a Service that has the number as its own port is not taken for.
			ch = byName["remember"]
			match, known := Rule{InSet{origVIP, x.Spec().Name, false}}, affinity
			if x.Set == StickyNodePorts {
				match = Rule{InSet{[]Term{OrigDaddr}, specs[ClusterIPs].Name, true}, InSet{[]Term{L4, OrigDport}, x.Spec().Name, false}}
				known = affinityNodePorts
			}
			r = append(match, Remember{known.Name, append([]Term{Saddr}, origVIP...), time.Duration(x.N) * time.Second, []Term{Daddr, Dport}})
		}
		ch.Rules = append(ch.Rules, r)
	}
	out := []Chain{*byName["remember"]}
	for id := range SetID(NumSources) {
		out = append(out, *byName["to-"+specs[id].Name])
	}
	return out
}
