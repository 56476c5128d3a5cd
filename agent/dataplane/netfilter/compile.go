package netfilter

import (
	"fmt"
	"net"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// compiler turns the statements of a rule into expressions.
type compiler struct {
	fam ruleset.Family
	out []any // expr.Any, or a string with the expression's message
}

// The kernel's registers of 4 bytes.
const firstReg, lastReg = unix.NFT_REG32_00, unix.NFT_REG32_15

// compile turns a rule into expressions. target is how many registers a map's value fills.
func compile(fam ruleset.Family, r ruleset.Rule, target int) ([]any, error) {
	c := &compiler{fam: fam}
	for _, s := range r {
		if err := c.stmt(s, target); err != nil {
			return nil, err
		}
	}
	return c.out, nil
}

func (c *compiler) emit(e expr.Any) { c.out = append(c.out, e) }

// stmt compiles a statement.
func (c *compiler) stmt(s ruleset.Stmt, target int) error {
	if long := spelled(s); long != nil {
		return c.all(long)
	}
	if known, err := c.condition(s, target); known {
		return err
	}
	return c.action(s, target)
}

// all compiles statements none of which looks into a map.
func (c *compiler) all(list []ruleset.Stmt) error {
	for _, s := range list {
		if err := c.stmt(s, 0); err != nil {
			return err
		}
	}
	return nil
}

// mask returns a mask of 32 bits.
func mask(n uint32) ruleset.Value { return ruleset.Host32(n) }

var none = mask(0)

// ctDNAT is the bit of a connection's status for destination NAT; the others are flags of TCP.
const (
	ctDNAT                         = 1 << 5 // IPS_DST_NAT
	tcpFin, tcpSyn, tcpRst, tcpAck = 0x01, 0x02, 0x04, 0x10
)

// spelled returns the statements that a shorter one stands for, nil for one that stands for itself.
func spelled(s ruleset.Stmt) []ruleset.Stmt {
	has := func(l ruleset.Load, bits uint32) []ruleset.Stmt {
		return []ruleset.Stmt{ruleset.Match{What: l, Mask: mask(bits), Not: true, Value: none}}
	}
	switch s := s.(type) {
	case ruleset.New:
		return has(ruleset.CtState, expr.CtStateBitNEW)
	case ruleset.Established:
		return has(ruleset.CtState, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	case ruleset.Invalid:
		return has(ruleset.CtState, expr.CtStateBitINVALID)
	case ruleset.Translated:
		return has(ruleset.CtStatus, ctDNAT)
	case ruleset.Marked:
		return has(ruleset.PacketMark, s.Mark)
	case ruleset.IsTCP:
		return []ruleset.Stmt{ruleset.Protocol(ruleset.TCP)}
	case ruleset.Midstream:
		return []ruleset.Stmt{ruleset.Protocol(ruleset.TCP), ruleset.Match{What: ruleset.TCPFlags,
			Mask: ruleset.Byte(tcpFin | tcpSyn | tcpRst | tcpAck), Not: true, Value: ruleset.Byte(tcpSyn)}}
	case ruleset.NoInit:
		return []ruleset.Stmt{ruleset.Protocol(ruleset.SCTP),
			ruleset.Match{What: ruleset.SCTPChunk, Not: true, Value: ruleset.Byte(1)}}
	}
	return nil
}

// comparison returns the comparison of a match, or of its opposite.
func comparison(not bool) expr.CmpOp {
	if not {
		return expr.CmpOpNeq
	}
	return expr.CmpOpEq
}

// condition compiles a statement that matches some packets. It reports whether s is one.
func (c *compiler) condition(s ruleset.Stmt, target int) (known bool, err error) {
	switch s := s.(type) {
	case ruleset.Match:
		err = c.load(s.What, firstReg)
		if !s.Mask.IsZero() {
			c.bits(s.Mask.Bytes(), make([]byte, len(s.Mask.Bytes())))
		}
		c.emit(&expr.Cmp{Op: comparison(s.Not), Register: firstReg, Data: s.Value.Bytes()})
	case ruleset.InRange:
		err = c.load(s.What, firstReg)
		c.emit(&expr.Range{Op: comparison(s.Not), Register: firstReg, FromData: s.From.Bytes(), ToData: s.To.Bytes()})
	case ruleset.Exists:
		err = c.load(s.What, firstReg) // loading what is absent ends the rule
	case ruleset.InPrefix:
		err = c.load(s.What, firstReg)
		addr := s.Prefix.Masked().Addr()
		if n := addr.BitLen(); s.Prefix.Bits() < n {
			c.bits(net.CIDRMask(s.Prefix.Bits(), n), make([]byte, n/8))
		}
		c.emit(&expr.Cmp{Op: comparison(s.Not), Register: firstReg, Data: addr.AsSlice()})
	case ruleset.Neighbor:
		err = c.all([]ruleset.Stmt{ruleset.Protocol(unix.IPPROTO_ICMPV6), ruleset.Exists{What: ruleset.ICMPv6Type}})
		c.emit(&expr.Cmp{Op: expr.CmpOpGte, Register: firstReg, Data: []byte{133}}) // router solicitation
		c.emit(&expr.Cmp{Op: expr.CmpOpLte, Register: firstReg, Data: []byte{137}}) // redirect
	case ruleset.Local:
		c.emit(&expr.Fib{Register: firstReg, ResultADDRTYPE: true,
			FlagSADDR: s.What == ruleset.Saddr, FlagDADDR: s.What == ruleset.Daddr})
		c.emit(&expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
	case ruleset.InSet:
		err = c.terms(s.Key, firstReg, target)
		c.emit(&expr.Lookup{SourceRegister: firstReg, SetName: s.Set, Invert: s.Not})
	case ruleset.ConnectionsOver:
		err = c.terms(s.Key, firstReg, target)
		c.emit(&expr.Dynset{SrcRegKey: firstReg, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_ADD,
			Exprs: []expr.Any{&expr.Connlimit{Count: s.Count, Flags: expr.NFT_CONNLIMIT_F_INV}}})
	case ruleset.RateOver:
		err = c.terms(s.Key, firstReg, target)
		c.emit(&expr.Dynset{SrcRegKey: firstReg, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE,
			Exprs: []expr.Any{&expr.Limit{
				Type: expr.LimitTypePkts, Rate: s.Rate, Unit: expr.LimitTimeSecond, Burst: s.Burst, Over: true,
			}}})
	default:
		return false, nil
	}
	return true, err
}

// bits changes the bits of what was loaded: those outside of the mask are cleared, those of flip are inverted.
func (c *compiler) bits(mask, flip []byte) {
	c.emit(&expr.Bitwise{SourceRegister: firstReg, DestRegister: firstReg,
		Len: uint32(len(mask)), Mask: mask, Xor: flip})
}

// setMark gives the packet a mark: its own, after bits.
func (c *compiler) setMark(mask, flip uint32) {
	c.emit(&expr.Meta{Key: expr.MetaKeyMARK, Register: firstReg})
	c.bits(binaryutil.NativeEndian.PutUint32(mask), binaryutil.NativeEndian.PutUint32(flip))
	c.emit(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: firstReg})
}

var (
	icmpx = map[ruleset.RejectWith]uint8{
		ruleset.NoRoute:    unix.NFT_REJECT_ICMPX_NO_ROUTE,
		ruleset.Prohibited: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED,
	}
	verdicts = map[ruleset.Verdict]expr.VerdictKind{
		ruleset.Drop: expr.VerdictDrop, ruleset.Accept: expr.VerdictAccept, ruleset.Return: expr.VerdictReturn,
	}
)

// action compiles a statement that does something with the packet.
func (c *compiler) action(s ruleset.Stmt, target int) (err error) {
	switch s := s.(type) {
	case ruleset.Count:
		c.emit(&expr.Counter{})
	case ruleset.Comment: // is stored beside the expressions
	case ruleset.Lookup:
		err = c.terms(s.Key, firstReg, target)
		c.emit(&expr.Lookup{SourceRegister: firstReg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.Map})
	case ruleset.SetMark:
		c.setMark(^s.Mark, s.Mark)
	case ruleset.ClearMark:
		c.setMark(^uint32(0), s.Mark)
	case ruleset.DNAT:
		err = c.term(s.To, firstReg, firstReg, target)
		c.dnat(c.fam, c.words(ruleset.Daddr, target))
	case ruleset.DNATTo:
		const words = 4 // of the longest address
		c.emit(&expr.Immediate{Register: firstReg, Data: s.To.Addr().AsSlice()})
		c.emit(&expr.Immediate{Register: firstReg + words, Data: ruleset.Net16(s.To.Port()).Bytes()})
		c.dnat(ruleset.FamilyOf(s.To.Addr()), words)
	case ruleset.Remember:
		data := uint32(firstReg)
		for _, t := range s.Key {
			data += c.words(t, target)
		}
		if err = c.terms(s.Key, firstReg, target); err == nil {
			err = c.terms(s.Data, data, target)
		}
		c.emit(&expr.Dynset{SrcRegKey: firstReg, SrcRegData: data, SetName: s.Set,
			Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout})
	case ruleset.Masquerade:
		c.emit(&expr.Masq{FullyRandom: !s.KeepPort})
	case ruleset.Reject:
		switch {
		case s.Reset:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
		case c.fam == ruleset.IPv6:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 4}) // port unreachable
		default:
			c.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})
		}
	case ruleset.RejectWith:
		code, ok := icmpx[s]
		if !ok {
			return fmt.Errorf("compile %v: unknown error", s)
		}
		c.emit(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: code})
	case ruleset.Jump:
		c.emit(&expr.Verdict{Kind: expr.VerdictJump, Chain: s.Chain})
	case ruleset.Verdict:
		kind, ok := verdicts[s]
		if !ok {
			return fmt.Errorf("compile verdict %q: unknown", s)
		}
		c.emit(&expr.Verdict{Kind: kind})
	default:
		return fmt.Errorf("compile %v: unknown statement", s)
	}
	return err
}

// dnat sends the connection to the address in the first registers, and the port behind that many registers.
func (c *compiler) dnat(fam ruleset.Family, words uint32) {
	c.emit(&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(fam),
		RegAddrMin: firstReg, RegProtoMin: firstReg + words, Specified: true})
}

// term loads t into the registers from reg on. Registers from free on may be used on the way.
func (c *compiler) term(t ruleset.Term, reg, free uint32, target int) error {
	if reg > lastReg || free > lastReg+1 {
		return fmt.Errorf("compile %v: out of registers", t)
	}
	switch t := t.(type) {
	case ruleset.Load:
		return c.load(t, reg)
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
