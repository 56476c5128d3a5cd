package netfilter

import (
	"fmt"
	"net"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// regs hands out the kernel's 4-byte registers; they are numbered from 8.
type compiler struct {
	fam ruleset.Family
	out []any // expr.Any, or a string with what to send
}

const firstReg, lastReg = unix.NFT_REG32_00, unix.NFT_REG32_15

func (c *compiler) emit(e expr.Any) { c.out = append(c.out, e) }

// words is how many registers a term fills.
func (c *compiler) words(t ruleset.Term, target int) uint32 {
	switch t := t.(type) {
	case ruleset.Load:
		if c.fam == ruleset.IPv6 && (t == ruleset.Saddr || t == ruleset.Daddr || t == ruleset.OrigDaddr) {
			return 4
		}
		return 1
	case ruleset.MapOf:
		return uint32(target)
	}
	return 1
}

// term loads t into the registers from reg on. Registers from free on may be used on the way.
func (c *compiler) term(t ruleset.Term, reg, free uint32, target int) error {
	if reg > lastReg || free > lastReg+1 {
		return fmt.Errorf("compile %v: out of registers", t)
	}
	switch t := t.(type) {
	case ruleset.Load:
		p := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader}
		switch {
		case t == ruleset.L4:
			c.emit(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg})
			return nil
		case t == ruleset.OrigDaddr:
			// The generic "ct original daddr", which the library knows, has no length that nft could list.
			key := uint32(20) // NFT_CT_DST_IP
			if c.fam == ruleset.IPv6 {
				key = 22 // NFT_CT_DST_IP6
			}
			c.out = append(c.out, ctOriginal(key, reg))
			return nil
		case t == ruleset.OrigDport:
			c.emit(&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg})
			return nil
		case t == ruleset.Dport:
			p.Base, p.Offset, p.Len = expr.PayloadBaseTransportHeader, 2, 2
		case t == ruleset.Saddr && c.fam == ruleset.IPv4:
			p.Offset, p.Len = 12, 4
		case t == ruleset.Daddr && c.fam == ruleset.IPv4:
			p.Offset, p.Len = 16, 4
		case t == ruleset.Saddr:
			p.Offset, p.Len = 8, 16
		case t == ruleset.Daddr:
			p.Offset, p.Len = 24, 16
		default:
			return fmt.Errorf("compile %v: unknown", t)
		}
		c.emit(p)
	case ruleset.Random:
		c.emit(&expr.Numgen{Register: reg, Modulus: t.Below, Type: unix.NFT_NG_RANDOM})
	case ruleset.MapOf:
		// The key may overlap the result: it is read first.
		if err := c.terms(t.Key, free, target); err != nil {
			return err
		}
		c.emit(&expr.Lookup{SourceRegister: free, DestRegister: reg, IsDestRegSet: true, SetName: t.Map})
	default:
		return fmt.Errorf("compile %v: unknown term", t)
	}
	return nil
}

// terms loads a key, one term after the other, from reg on.
func (c *compiler) terms(key []ruleset.Term, reg uint32, target int) error {
	at := reg
	for _, t := range key {
		w := c.words(t, target)
		if err := c.term(t, at, at+w, target); err != nil {
			return err
		}
		at += w
	}
	return nil
}

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

// compile turns a rule into expressions. target is how many registers an endpoint fills.
func compile(fam ruleset.Family, r ruleset.Rule, target int) ([]any, error) {
	c := &compiler{fam: fam}
	for _, s := range r {
		if err := c.stmt(s, target); err != nil {
			return nil, err
		}
	}
	return c.out, nil
}

func (c *compiler) match(op expr.CmpOp, data []byte) {
	c.emit(&expr.Cmp{Op: op, Register: firstReg, Data: data})
}

func (c *compiler) proto(p byte) {
	c.emit(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstReg})
	c.match(expr.CmpOpEq, []byte{p})
}

func (c *compiler) bits(mask, xor uint32) {
	c.emit(&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor)})
}

func (c *compiler) verdict(kind expr.VerdictKind, chain string) {
	c.emit(&expr.Verdict{Kind: kind, Chain: chain})
}

var zero = []byte{0, 0, 0, 0}

func (c *compiler) stmt(s ruleset.Stmt, target int) error {
	switch s := s.(type) {
	case ruleset.InPrefix:
		if err := c.term(s.What, firstReg, firstReg, target); err != nil {
			return err
		}
		op := expr.CmpOpEq
		if s.Not {
			op = expr.CmpOpNeq
		}
		addr := s.Prefix.Masked().Addr()
		if n := addr.BitLen(); s.Prefix.Bits() < n {
			c.emit(&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: uint32(n / 8),
				Mask: net.CIDRMask(s.Prefix.Bits(), n), Xor: make([]byte, n/8)})
		}
		c.match(op, addr.AsSlice())
	case ruleset.Local:
		c.emit(&expr.Fib{Register: firstReg, ResultADDRTYPE: true, FlagSADDR: s.What == ruleset.Saddr, FlagDADDR: s.What == ruleset.Daddr})
		c.match(expr.CmpOpEq, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL))
	case ruleset.InSet:
		if err := c.terms(s.Key, firstReg, target); err != nil {
			return err
		}
		c.emit(&expr.Lookup{SourceRegister: firstReg, SetName: s.Set, Invert: s.Not})
	case ruleset.New:
		c.emit(&expr.Ct{Register: firstReg, Key: expr.CtKeySTATE})
		c.bits(expr.CtStateBitNEW, 0)
		c.match(expr.CmpOpNeq, zero)
	case ruleset.Established:
		c.emit(&expr.Ct{Register: firstReg, Key: expr.CtKeySTATE})
		c.bits(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED, 0)
		c.match(expr.CmpOpNeq, zero)
	case ruleset.Invalid:
		c.emit(&expr.Ct{Register: firstReg, Key: expr.CtKeySTATE})
		c.bits(expr.CtStateBitINVALID, 0)
		c.match(expr.CmpOpNeq, zero)
	case ruleset.Midstream:
		c.proto(unix.IPPROTO_TCP)
		c.emit(&expr.Payload{DestRegister: firstReg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1})
		c.emit(&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}})
		c.match(expr.CmpOpNeq, []byte{0x02})
	case ruleset.NoInit:
		c.proto(unix.IPPROTO_SCTP)
		c.emit(&expr.Payload{DestRegister: firstReg, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 1})
		c.match(expr.CmpOpNeq, []byte{1})
	case ruleset.Neighbor:
		c.proto(unix.IPPROTO_ICMPV6)
		c.emit(&expr.Payload{DestRegister: firstReg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1})
		c.match(expr.CmpOpGte, []byte{133}) // router solicitation
		c.match(expr.CmpOpLte, []byte{137}) // redirect
	case ruleset.Count:
		c.emit(&expr.Counter{})
	case ruleset.Lookup:
		if err := c.terms(s.Key, firstReg, target); err != nil {
			return err
		}
		c.emit(&expr.Lookup{SourceRegister: firstReg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Map})
	case ruleset.Translated:
		c.emit(&expr.Ct{Register: firstReg, Key: expr.CtKeySTATUS})
		c.bits(1<<5, 0) // IPS_DST_NAT
		c.match(expr.CmpOpNeq, zero)
	case ruleset.IsTCP:
		c.proto(unix.IPPROTO_TCP)
	case ruleset.Marked:
		c.emit(&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg})
		c.bits(s.Mark, 0)
		c.match(expr.CmpOpNeq, zero)
	case ruleset.SetMark:
		c.emit(&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg})
		c.bits(^s.Mark, s.Mark)
		c.emit(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: firstReg})
	case ruleset.ClearMark:
		c.emit(&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg})
		c.bits(^uint32(0), s.Mark)
		c.emit(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: firstReg})
	case ruleset.DNAT:
		if err := c.term(s.To, firstReg, firstReg, target); err != nil {
			return err
		}
		port := uint32(firstReg + 1)
		if c.fam == ruleset.IPv6 {
			port = firstReg + 4
		}
		c.emit(&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(c.fam), RegAddrMin: firstReg, RegProtoMin: port, Specified: true})
	case ruleset.Remember:
		data := uint32(firstReg)
		for _, t := range s.Key {
			data += c.words(t, target)
		}
		if err := c.terms(s.Key, firstReg, target); err != nil {
			return err
		}
		if err := c.terms(s.Data, data, target); err != nil {
			return err
		}
		c.emit(&expr.Dynset{SrcRegKey: firstReg, SrcRegData: data, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout})
	case ruleset.Masquerade:
		c.emit(&expr.Masq{FullyRandom: true})
	case ruleset.Reject:
		switch {
		case s.Reset:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		case c.fam == ruleset.IPv6:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 4}) // port unreachable
		default:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})
		}
	case ruleset.Jump:
		c.verdict(expr.VerdictJump, s.Chain)
	case ruleset.Verdict:
		switch s {
		case "drop":
			c.verdict(expr.VerdictDrop, "")
		case "accept":
			c.verdict(expr.VerdictAccept, "")
		case "return":
			c.verdict(expr.VerdictReturn, "")
		default:
			return fmt.Errorf("compile verdict %q: unknown", s)
		}
	default:
		return fmt.Errorf("compile %v: unknown statement", s)
	}
	return nil
}

// How the kernel calls a verdict as data of a map.
const verdictType, verdictLen = 0xffffff00, 16

// nft numbers the types of sets; these numbers are in the kernel only for nft to read.
func fieldType(fam ruleset.Family, f ruleset.Field) uint32 {
	switch f {
	case ruleset.Addr:
		if fam == ruleset.IPv6 {
			return 8
		}
		return 7
	case ruleset.Proto:
		return 12
	case ruleset.Port:
		return 13
	}
	return 19
}

// TypeOf is how a key or value of these fields is typed, and its length.
func TypeOf(fam ruleset.Family, fields []ruleset.Field) (typ uint32, length int) {
	if isVerdict(fields) {
		return verdictType, verdictLen
	}
	for _, f := range fields {
		typ = typ<<6 | fieldType(fam, f)
		length += f.Len(fam)
	}
	return typ, length
}
