package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Family is the family of a table, with netlink's value.
type Family uint8

// The families of tables. A table of Inet sees both IPv4 and IPv6, one of Netdev the frames of an interface.
const (
	Inet   Family = 1
	IPv4   Family = 2
	Netdev Family = 5
	IPv6   Family = 10
)

// String returns the family in nft's syntax.
func (f Family) String() string {
	switch f {
	case Inet:
		return "inet"
	case Netdev:
		return "netdev"
	case IPv6:
		return "ip6"
	}
	return "ip"
}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Has reports whether a packet of this family, IPv4 or IPv6, can carry address a.
func (f Family) Has(a netip.Addr) bool {
	if f == IPv4 {
		return a.Is4()
	}
	return a.Is6() && !a.Is4In6() && a.Zone() == ""
}

// Protocols with ports, as in the IP header.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// ProtoName returns the name of a protocol in nft's syntax.
func ProtoName(p uint8) string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

// The Put functions encode keys and values of sets in the kernel's format, each field padded to four bytes.

// PutAddr appends an address.
func PutAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }

// PutPort appends a port.
func PutPort(b []byte, p uint16) []byte { return append(b, byte(p>>8), byte(p), 0, 0) }

// PutProto appends a protocol.
func PutProto(b []byte, p uint8) []byte { return append(b, p, 0, 0, 0) }

// PutMark appends a number in the machine's byte order.
func PutMark(b []byte, m uint32) []byte { return binary.NativeEndian.AppendUint32(b, m) }

// LastAddr returns the last address of a range.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Field is one part of a key or value.
type Field uint8

// The kinds of fields.
const (
	Addr Field = iota // an address of the table's family, which is IPv4 or IPv6
	Proto
	Port
	Mark
	// ChainName is the verdict "jump" to the chain of this name. It is the only field of its value.
	ChainName
	// Addr4 and Addr6 are addresses in a table of any family.
	Addr4
	Addr6
)

// Len returns the length of the field in a key, padding included.
func (f Field) Len(fam Family) int {
	if f == Addr6 || f == Addr && fam == IPv6 {
		return 16
	}
	return 4
}

// Decode writes an encoded key or value in nft's syntax: fields joined by " . ".
func Decode(fam Family, fields []Field, raw string) string {
	var out []string
	if len(fields) == 1 && fields[0] == ChainName {
		return "jump " + raw
	}
	for _, f := range fields {
		n := f.Len(fam)
		if len(raw) < n {
			return fmt.Sprintf("%x", raw)
		}
		b := []byte(raw[:n])
		raw = raw[n:]
		switch f {
		case Addr, Addr4, Addr6:
			a, _ := netip.AddrFromSlice(b)
			out = append(out, a.String())
		case Proto:
			out = append(out, ProtoName(b[0]))
		case Port:
			out = append(out, fmt.Sprint(uint16(b[0])<<8|uint16(b[1])))
		case Mark:
			out = append(out, fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)))
		}
	}
	return strings.Join(out, " . ")
}
