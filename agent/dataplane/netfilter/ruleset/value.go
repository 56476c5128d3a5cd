package ruleset

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// Value is a constant that rules compare with: its bytes as they stand in a packet or register, and its text in nft's
// syntax. The zero Value is none.
type Value struct{ raw, text string }

// IsZero reports whether v is none.
func (v Value) IsZero() bool { return v.raw == "" }

// Bytes returns the value as it stands in a packet or register.
func (v Value) Bytes() []byte { return []byte(v.raw) }

func (v Value) String() string { return v.text }

// Named returns v with another text, such as the name of a constant.
func (v Value) Named(text string) Value { return Value{v.raw, text} }

// Byte returns a number of 8 bits.
func Byte(n byte) Value { return Value{string([]byte{n}), fmt.Sprint(n)} }

// Net16 returns a number of 16 bits in network byte order.
func Net16(n uint16) Value {
	return Value{string(binary.BigEndian.AppendUint16(nil, n)), fmt.Sprint(n)}
}

// Host16 returns a number of 16 bits in the machine's byte order.
func Host16(n uint16) Value {
	return Value{string(binary.NativeEndian.AppendUint16(nil, n)), fmt.Sprint(n)}
}

// Host32 returns a number of 32 bits in the machine's byte order.
func Host32(n uint32) Value {
	return Value{string(binary.NativeEndian.AppendUint32(nil, n)), fmt.Sprintf("0x%x", n)}
}

// Address returns an IP address.
func Address(a netip.Addr) Value { return Value{string(a.AsSlice()), a.String()} }

// Hardware returns an Ethernet address.
func Hardware(a net.HardwareAddr) Value { return Value{string(a), a.String()} }

// interfaceLen is IFNAMSIZ, the length of an interface's name in a register.
const interfaceLen = 16

// Interface returns the name of a network interface.
func Interface(name string) Value {
	var raw [interfaceLen]byte
	copy(raw[:], name)
	return Value{string(raw[:]), fmt.Sprintf("%q", name)}
}

// Of returns a match of packets of a family, IPv4 or IPv6: the rules of a table of Inet need it before they load what
// only one family has.
func Of(f Family) Match {
	return Match{What: PacketFamily, Value: Byte(byte(f)).Named(map[Family]string{IPv4: "ipv4", IPv6: "ipv6"}[f])}
}

// Protocol returns a match of packets of a transport protocol.
func Protocol(p uint8) Match { return Match{What: L4, Value: Byte(p).Named(ProtoName(p))} }

// ToPort returns a match of packets to a port. A match of their protocol must stand before it.
func ToPort(p uint16) Match { return Match{What: Dport, Value: Net16(p)} }

// SaddrOf returns the load of the source address of packets of a family, in a table of Inet or Netdev.
func SaddrOf(f Family) Load {
	if f == IPv6 {
		return Saddr6
	}
	return Saddr
}

// DaddrOf returns the load of the destination address of packets of a family, in a table of Inet or Netdev.
func DaddrOf(f Family) Load {
	if f == IPv6 {
		return Daddr6
	}
	return Daddr
}
