package ruleset

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Term is a value that a rule loads into registers.
type Term interface{ fmt.Stringer }

// Load is a Term that comes from the packet, its frame or its connection.
type Load string

// The Loads. Saddr and Daddr are the addresses of the table's family, those of IPv4 in tables of Inet and Netdev.
const (
	Saddr  Load = "ip saddr"
	Daddr  Load = "ip daddr"
	Saddr6 Load = "ip6 saddr"
	Daddr6 Load = "ip6 daddr"
	L4     Load = "meta l4proto"
	Dport  Load = "th dport"
	// OrigDaddr and OrigDport are the destination before NAT.
	OrigDaddr Load = "ct original daddr"
	OrigDport Load = "ct original proto-dst"

	PacketFamily Load = "meta nfproto"
	InInterface  Load = "iifname"
	OutInterface Load = "oifname"
	InType       Load = "meta iiftype"
	CtState      Load = "ct state"
	CtStatus     Load = "ct status"
	PacketMark   Load = "meta mark"
	TCPFlags     Load = "tcp flags"
	SCTPChunk    Load = "@th,96,8" // the type of the packet's first chunk

	EtherProtocol Load = "meta protocol" // as the kernel has found it behind VLAN tags
	EtherType     Load = "ether type"    // as it stands in the frame
	EtherSaddr    Load = "ether saddr"
	ARPSaddr      Load = "arp saddr ip"
	ICMPv6Type    Load = "icmpv6 type"
	NDTarget      Load = "icmpv6 taddr" // of a neighbour solicitation or advertisement
	HasFragment   Load = "exthdr frag"  // 1 if the packet has a fragment header
	FragmentWord  Load = "frag frag-off"
)

func (l Load) String() string { return string(l) }

// Random is a Term: a number from 0 up to, not including, Below.
type Random struct{ Below uint32 }

func (r Random) String() string { return fmt.Sprintf("numgen random mod %d", r.Below) }

// MapOf is a Term: the map's value of the key. A key that the map does not have ends the rule.
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
	// Match matches if what is loaded equals Value, after the bits outside of Mask were cleared. Without a Mask (the zero
	// Value) all bits count.
	Match struct {
		What  Load
		Mask  Value
		Not   bool
		Value Value
	}
	// InRange matches a value from From to To, both included.
	InRange struct {
		What     Load
		Not      bool
		From, To Value
	}
	// Exists matches packets that have what is loaded.
	Exists struct{ What Load }
	// InPrefix matches an address.
	InPrefix struct {
		What   Load
		Prefix netip.Prefix
		Not    bool
	}
	// Local matches an address of this machine.
	Local struct{ What Load }
	// InSet matches a key that the set has.
	InSet struct {
		Key []Term
		Set string
		Not bool
	}
	// New matches the first packet of a connection.
	New struct{}
	// Established matches packets of an existing connection, and ICMP errors about one.
	Established struct{}
	// Invalid matches packets that belong to no connection and cannot begin one.
	Invalid struct{}
	// Translated matches connections with destination NAT.
	Translated struct{}
	// IsTCP matches TCP.
	IsTCP struct{}
	// Midstream matches TCP packets that do not begin a connection.
	Midstream struct{}
	// NoInit matches SCTP packets that do not begin an association.
	NoInit struct{}
	// Neighbor matches the ICMPv6 messages of neighbour and router discovery.
	Neighbor struct{}
	// Marked matches packets that have the mark bit.
	Marked struct{ Mark uint32 }
	// SetMark sets the mark bit.
	SetMark struct{ Mark uint32 }
	// ClearMark clears the mark bit of packets that have it.
	ClearMark struct{ Mark uint32 }
	// DNAT sends the connection to the address and port that a map returns.
	DNAT struct{ To MapOf }
	// DNATTo sends the connection to a fixed address and port.
	DNATTo struct{ To netip.AddrPort }
	// ConnectionsOver counts the connections of a key in a dynamic set and matches those beyond Count.
	ConnectionsOver struct {
		Set   string
		Key   []Term
		Count uint32
	}
	// RateOver counts the packets of a key in a dynamic set and matches those beyond Rate a second, after Burst.
	RateOver struct {
		Set   string
		Key   []Term
		Rate  uint64
		Burst uint32
	}
	// Remember stores Data under Key in a dynamic map that does not have the key, and restarts its time-out.
	Remember struct {
		Set     string
		Key     []Term
		Timeout time.Duration
		Data    []Term
	}
	// Masquerade gives the connection an address of this machine as source, and a random port unless KeepPort.
	Masquerade struct{ KeepPort bool }
	// Reject answers with a port-unreachable error, or with a TCP reset.
	Reject struct{ Reset bool }
	// RejectWith answers with an ICMP error that IPv4 and IPv6 have in common: one of the constants NoRoute and
	// Prohibited.
	RejectWith string
	// Count counts packets and bytes.
	Count struct{}
	// Lookup jumps to the chain that the map returns for the key. A key that the map does not have ends the rule.
	Lookup struct {
		Key []Term
		Map string
	}
	// Jump runs another chain and returns.
	Jump struct{ Chain string }
	// Verdict is one of the constants Drop, Accept and Return.
	Verdict string
	// Comment is stored with the rule and has no effect on packets. It must be the rule's last statement.
	Comment string
)

// The verdicts, and the errors of RejectWith.
const (
	Drop   Verdict = "drop"
	Accept Verdict = "accept"
	Return Verdict = "return"

	NoRoute    RejectWith = "no-route"
	Prohibited RejectWith = "admin-prohibited"
)

func (s Match) String() string {
	op := not(s.Not)
	if !s.Mask.IsZero() {
		op = " & " + s.Mask.String() + cmp.Or(op, " ==")
	}
	return fmt.Sprintf("%s%s %s", s.What, op, s.Value)
}
func (s InRange) String() string {
	return fmt.Sprintf("%s%s %s-%s", s.What, not(s.Not), s.From, s.To)
}
func (s Exists) String() string     { return s.What.String() + " exists" }
func (s DNATTo) String() string     { return fmt.Sprintf("dnat %s to %s", FamilyOf(s.To.Addr()), s.To) }
func (s RejectWith) String() string { return "reject with icmpx " + string(s) }
func (s Comment) String() string    { return fmt.Sprintf("comment %q", string(s)) }
func (s ConnectionsOver) String() string {
	return fmt.Sprintf("add @%s { %s ct count over %d }", s.Set, join(s.Key), s.Count)
}
func (s RateOver) String() string {
	return fmt.Sprintf("update @%s { %s limit rate over %d/second burst %d packets }", s.Set, join(s.Key), s.Rate, s.Burst)
}

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
func (Established) String() string { return "ct state established,related" }
func (Invalid) String() string     { return "ct state invalid" }
func (Midstream) String() string   { return "tcp flags & (fin | syn | rst | ack) != syn" }
func (NoInit) String() string      { return "sctp chunk init missing" }
func (Neighbor) String() string    { return "icmpv6 type 133-137" }
func (Count) String() string       { return "counter" }
func (s Lookup) String() string    { return join(s.Key) + " vmap @" + s.Map }
func (Translated) String() string  { return "ct status dnat" }
func (IsTCP) String() string       { return "meta l4proto tcp" }
func (s Marked) String() string    { return fmt.Sprintf("meta mark & 0x%08x != 0x0", s.Mark) }
func (s SetMark) String() string   { return fmt.Sprintf("meta mark set meta mark | 0x%08x", s.Mark) }
func (s ClearMark) String() string { return fmt.Sprintf("meta mark set meta mark ^ 0x%08x", s.Mark) }
func (s DNAT) String() string      { return "dnat to " + s.To.String() }
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
func (s Masquerade) String() string {
	if s.KeepPort {
		return "masquerade"
	}
	return "masquerade fully-random"
}
