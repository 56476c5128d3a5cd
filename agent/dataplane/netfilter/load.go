package netfilter

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// field is the place of a value in a packet.
type field struct {
	base        expr.PayloadBase
	offset, len uint32
}

// fields are the loads that stand in the packet; for Saddr and Daddr, where they stand in IPv4.
var fields = map[ruleset.Load]field{
	ruleset.Saddr:      {expr.PayloadBaseNetworkHeader, 12, 4},
	ruleset.Daddr:      {expr.PayloadBaseNetworkHeader, 16, 4},
	ruleset.Saddr6:     {expr.PayloadBaseNetworkHeader, 8, 16},
	ruleset.Daddr6:     {expr.PayloadBaseNetworkHeader, 24, 16},
	ruleset.ARPSaddr:   {expr.PayloadBaseNetworkHeader, 14, 4},
	ruleset.Dport:      {expr.PayloadBaseTransportHeader, 2, 2},
	ruleset.TCPFlags:   {expr.PayloadBaseTransportHeader, 13, 1},
	ruleset.SCTPChunk:  {expr.PayloadBaseTransportHeader, 12, 1},
	ruleset.ICMPv6Type: {expr.PayloadBaseTransportHeader, 0, 1},
	ruleset.NDTarget:   {expr.PayloadBaseTransportHeader, 8, 16},
	ruleset.EtherSaddr: {expr.PayloadBaseLLHeader, 6, 6},
	ruleset.EtherType:  {expr.PayloadBaseLLHeader, 12, 2},
}

// metas are the loads that the kernel knows about the packet.
var metas = map[ruleset.Load]expr.MetaKey{
	ruleset.L4:            expr.MetaKeyL4PROTO,
	ruleset.PacketFamily:  expr.MetaKeyNFPROTO,
	ruleset.InInterface:   expr.MetaKeyIIFNAME,
	ruleset.OutInterface:  expr.MetaKeyOIFNAME,
	ruleset.InType:        expr.MetaKeyIIFTYPE,
	ruleset.EtherProtocol: expr.MetaKeyPROTOCOL,
	ruleset.PacketMark:    expr.MetaKeyMARK,
}

// cts are the loads of the connection.
var cts = map[ruleset.Load]expr.CtKey{
	ruleset.OrigDport: expr.CtKeyPROTODST,
	ruleset.CtState:   expr.CtKeySTATE,
	ruleset.CtStatus:  expr.CtKeySTATUS,
}

// fragmentHeader is the IPv6 extension header of fragments (RFC 8200).
const fragmentHeader = 44

// exthdrs are the loads of extension headers.
var exthdrs = map[ruleset.Load]expr.Exthdr{
	ruleset.HasFragment:  {Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT},
	ruleset.FragmentWord: {Offset: 2, Len: 2},
}

// of returns the load that stands for l in tables of IPv6.
func (c *compiler) of(l ruleset.Load) ruleset.Load {
	switch {
	case c.fam == ruleset.IPv6 && l == ruleset.Saddr:
		return ruleset.Saddr6
	case c.fam == ruleset.IPv6 && l == ruleset.Daddr:
		return ruleset.Daddr6
	}
	return l
}

// load loads l into the registers from reg on.
func (c *compiler) load(l ruleset.Load, reg uint32) error {
	l = c.of(l)
	if f, ok := fields[l]; ok {
		c.emit(&expr.Payload{DestRegister: reg, Base: f.base, Offset: f.offset, Len: f.len})
	} else if k, ok := metas[l]; ok {
		c.emit(&expr.Meta{Key: k, Register: reg})
	} else if k, ok := cts[l]; ok {
		c.emit(&expr.Ct{Key: k, Register: reg})
	} else if x, ok := exthdrs[l]; ok {
		x.DestRegister, x.Type, x.Op = reg, fragmentHeader, expr.ExthdrOpIpv6
		c.emit(&x)
	} else if l == ruleset.OrigDaddr {
		// The generic "ct original daddr", which the library knows, has no length that nft could list.
		key := uint32(20) // NFT_CT_DST_IP
		if c.fam == ruleset.IPv6 {
			key = 22 // NFT_CT_DST_IP6
		}
		c.out = append(c.out, ctOriginal(key, reg))
	} else {
		return fmt.Errorf("compile %v: unknown load", l)
	}
	return nil
}

// words returns how many registers a term fills. target is how many a map's value fills.
func (c *compiler) words(t ruleset.Term, target int) uint32 {
	switch t := t.(type) {
	case ruleset.Load:
		if t == ruleset.OrigDaddr && c.fam == ruleset.IPv6 {
			return 4
		}
		return max(1, (fields[c.of(t)].len+3)/4)
	case ruleset.MapOf:
		return uint32(target)
	}
	return 1
}

// ctOriginal returns the message of an expression that loads a key of the connection's original direction.
func ctOriginal(key, reg uint32) string {
	b := &Batch{}
	b.Str(unix.NFTA_EXPR_NAME, "ct")
	at := b.Nest(unix.NFTA_EXPR_DATA)
	b.U32(unix.NFTA_CT_DREG, reg)
	b.U32(unix.NFTA_CT_KEY, key)
	b.Raw(unix.NFTA_CT_DIRECTION, "\x00")
	b.Unnest(at)
	return string(b.b)
}
