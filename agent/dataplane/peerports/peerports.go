package peerports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the nftables table; cleanup knows it by its prefix.
const Table = "umiak-peers"

const (
	chainInput = "input"
	vxlanPort  = 8472
	// setChunk is how many elements one netlink message has at most, whose length has 16 bits.
	setChunk = 1000
	// Bits of the TCP header's flags.
	tcpFin, tcpSyn, tcpRst, tcpAck = 0x01, 0x02, 0x04, 0x10
)

// Rules are what a node lets in.
type Rules struct {
	// Kubelet is the kubelet's port; 0 leaves it open.
	Kubelet int
	// VXLAN closes vxlan's port.
	VXLAN bool
	// Peers are the addresses of nodes and servers.
	Peers []netip.Addr
	// Ranges are whose connections to the kubelet are let in besides: pods, and what the settings name.
	Ranges []netip.Prefix
}

// Refused counts what was not let in since the rules were last written.
type Refused struct{ Kubelet, VXLAN uint64 }

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// Apply replaces the table.
func Apply(r Rules) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(table()) // so that there is one to delete
	c.DelTable(t)
	if r.Kubelet != 0 || r.VXLAN {
		c.AddTable(t)
		if err := r.add(c, t); err != nil {
			return fmt.Errorf("write nftables table %s: %w", Table, err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

func (r Rules) add(c *nftables.Conn, t *nftables.Table) error {
	var sets [2]*nftables.Set // IPv4, IPv6
	for i, v4 := range []bool{true, false} {
		s := &nftables.Set{Table: t, Name: "nodes6", KeyType: nftables.TypeIP6Addr}
		if v4 {
			s.Name, s.KeyType = "nodes4", nftables.TypeIPAddr
		}
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, a := range r.Peers {
			if a.Is4() == v4 {
				elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
			}
		}
		for part := range slices.Chunk(elements, setChunk) {
			if err := c.SetAddElements(s, part); err != nil {
				return err
			}
		}
		sets[i] = s
	}
	in := c.AddChain(&nftables.Chain{Name: chainInput, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	rule := func(parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: slices.Concat(parts...)})
	}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	rule(fromItself(), accept)
	if r.VXLAN {
		for i, v4 := range []bool{true, false} {
			rule(port(unix.IPPROTO_UDP, vxlanPort), family(v4), source(sets[i], true), []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}})
		}
	}
	if r.Kubelet != 0 {
		begins := slices.Concat(port(unix.IPPROTO_TCP, uint16(r.Kubelet)), firstPacket())
		for i, v4 := range []bool{true, false} {
			rule(begins, family(v4), source(sets[i], false), accept)
		}
		for _, p := range r.Ranges {
			rule(begins, family(p.Addr().Is4()), within(p), accept)
		}
		rule(begins, []expr.Any{&expr.Counter{}, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	}
	return nil
}

// fromItself matches what the machine sends to its own addresses.
func fromItself() []expr.Any {
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo}}
}

// port matches packets to a port.
func port(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// firstPacket matches the packet that begins a TCP connection.
func firstPacket() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpFin | tcpSyn | tcpRst | tcpAck}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcpSyn}},
	}
}

func family(v4 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if !v4 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

// loadSource loads the source address of a packet of a family.
func loadSource(v4 bool) *expr.Payload {
	if v4 {
		return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
	}
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16}
}

// source matches packets whose source is in a set, or is not.
func source(s *nftables.Set, not bool) []expr.Any {
	return []expr.Any{loadSource(s.KeyType == nftables.TypeIPAddr), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: not}}
}

// within matches packets whose source lies in a range.
func within(p netip.Prefix) []expr.Any {
	load := loadSource(p.Addr().Is4())
	mask := make([]byte, load.Len)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: load.Len, Mask: mask, Xor: make([]byte, load.Len)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// Counts reads what was not let in.
func Counts() (out Refused, err error) {
	c, err := nftables.New()
	if err != nil {
		return out, fmt.Errorf("open nftables: %w", err)
	}
	rules, err := c.GetRules(table(), &nftables.Chain{Name: chainInput, Table: table()})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return out, fmt.Errorf("list rules of nftables table %s: %w", Table, err)
	}
	for _, r := range rules {
		var n uint64
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Counter:
				n = e.Packets
			case *expr.Reject:
				out.Kubelet += n
			case *expr.Verdict:
				if e.Kind == expr.VerdictDrop {
					out.VXLAN += n
				}
			}
		}
	}
	return out, nil
}
