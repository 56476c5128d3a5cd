package ruleset

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

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
	// Established matches packets of a connection that was let through, and errors about one.
	Established struct{}
	// Invalid matches packets that belong to no connection and cannot begin one.
	Invalid struct{}
	// Translated matches connections whose destination was changed.
	Translated struct{}
	// IsTCP matches TCP.
	IsTCP struct{}
	// Midstream matches TCP packets that do not ask for a connection.
	Midstream struct{}
	// NoInit matches SCTP packets that do not ask for an association.
	NoInit struct{}
	// Neighbor matches what IPv6 needs to find neighbours and routers.
	Neighbor struct{}
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
	// Count counts packets and bytes.
	Count struct{}
	// Lookup jumps to the chain that the map gives for the key. A key that is not there ends the rule.
	Lookup struct {
		Key []Term
		Map string
	}
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

// DumpChains writes chains much as nft does.
func DumpChains(w io.Writer, chains []Chain) {
	for _, c := range chains {
		fmt.Fprintf(w, "chain %s {\n", c.Name)
		if c.Hook != nil {
			fmt.Fprintf(w, "\ttype %s hook %s priority %d\n", c.Hook.Type, c.Hook.Name, c.Hook.Priority)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(w, "\t%s\n", r)
		}
		fmt.Fprintln(w, "}")
	}
}
