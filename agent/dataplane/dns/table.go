package dns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// layout is what the table is made of.
type layout struct {
	addrs []netip.Addr // of the cluster's DNS
	port  uint16       // at which CoreDNS listens
	// podInterface is the one by which this node's pods ask; empty where the user brings the network. Then only what enters by
	// an interface that has one of nodeIPs is not answered.
	podInterface string
	nodeIPs      []netip.Addr
	limits       limits
}

// limits are those of one client, told by its address.
type limits struct {
	connections uint32 // of TCP, open at once
	queries     uint64 // by UDP, in a second, after burst
	burst       uint32
}

// defaultLimits are far above what programs do: a lookup is at most ten queries, and one that has been answered by TCP is closed.
var defaultLimits = limits{connections: 256, queries: 2000, burst: 4000}

// apply replaces the table in one transaction. It reports whether clients are limited, which needs parts of the kernel that not
// every one has.
func (l layout) apply() (limited bool, err error) {
	if err = l.write(true); err == nil {
		return true, nil
	}
	if again := l.write(false); again != nil {
		return false, errors.Join(err, again)
	}
	return false, nil
}

func (l layout) write(limited bool) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	prio := nftables.ChainPriority(natPriority)
	for _, hook := range []struct {
		name string
		at   *nftables.ChainHook
		from []netip.Addr
		by   []expr.Any
	}{
		{"prerouting", nftables.ChainHookPrerouting, l.addrs, l.pods()},
		// The host itself may also ask the server's own addresses.
		{"output", nftables.ChainHookOutput, append(listenAddrs(l.addrs), l.addrs...), nil},
	} {
		ch := c.AddChain(&nftables.Chain{Name: hook.name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook.at, Priority: &prio})
		for _, from := range hook.from {
			to := AddrV4
			if from.Is6() {
				to = AddrV6
			}
			for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(slices.Clone(hook.by), dnat(from, netip.AddrPortFrom(to, l.port), proto)...)})
			}
		}
	}
	in := c.AddChain(&nftables.Chain{Name: "input", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter})
	for _, a := range listenAddrs(l.addrs) {
		c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: dropDirect(a)})
		if limited {
			if err := l.limit(c, t, in, a); err != nil {
				return err
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

func daddr(a netip.Addr) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// dnat: ip daddr FROM PROTO dport 53 dnat to TO
func dnat(from netip.Addr, to netip.AddrPort, proto byte) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if from.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return append(daddr(from),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, 53)},
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	)
}

// dropDirect: iifname != lo ip daddr A ct status & dnat == 0 drop. A neighbour on the wire that sets a
// route to A through this node must find nothing there.
func dropDirect(a netip.Addr) []expr.Any {
	return append(append(daddr(a), iifname(expr.CmpOpNeq, "lo")...),
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// pods matches what this node's pods send.
func (l layout) pods() (out []expr.Any) {
	if l.podInterface != "" {
		return iifname(expr.CmpOpEq, l.podInterface)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil // as if there were none
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err == nil && i.Flags&net.FlagLoopback == 0 && slices.ContainsFunc(addrs, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && slices.Contains(l.nodeIPs, p.Addr().Unmap())
		}) {
			out = append(out, iifname(expr.CmpOpNeq, i.Name)...)
		}
	}
	return out
}

func iifname(op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

// limit adds what one client may not do to the chain of what arrives at address a: what is more than allowed is dropped.
func (l layout) limit(c *nftables.Conn, t *nftables.Table, in *nftables.Chain, a netip.Addr) error {
	name, typ, offset, size := "4", nftables.TypeIPAddr, uint32(12), uint32(4)
	if a.Is6() {
		name, typ, offset, size = "6", nftables.TypeIP6Addr, 8, 16
	}
	for _, m := range []struct {
		set   *nftables.Set
		proto byte
		op    uint32
		expr  expr.Any
	}{
		{&nftables.Set{Name: "connections" + name}, unix.IPPROTO_TCP, unix.NFT_DYNSET_OP_ADD,
			&expr.Connlimit{Count: l.limits.connections, Flags: expr.NFT_CONNLIMIT_F_INV}},
		{&nftables.Set{Name: "queries" + name, HasTimeout: true, Timeout: time.Minute}, unix.IPPROTO_UDP, unix.NFT_DYNSET_OP_UPDATE,
			&expr.Limit{Type: expr.LimitTypePkts, Rate: l.limits.queries, Unit: expr.LimitTimeSecond, Burst: l.limits.burst, Over: true}},
	} {
		m.set.Table, m.set.KeyType, m.set.Dynamic = t, typ, true
		if err := c.AddSet(m.set, nil); err != nil {
			return fmt.Errorf("make set %s: %w", m.set.Name, err)
		}
		rule := slices.Concat(daddr(a), iifname(expr.CmpOpNeq, "lo"), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{m.proto}},
		})
		if m.proto == unix.IPPROTO_TCP {
			rule = append(rule, &expr.Ct{Key: expr.CtKeySTATE, Register: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)})
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: append(rule,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Dynset{SrcRegKey: 1, SetName: m.set.Name, SetID: m.set.ID, Operation: m.op, Exprs: []expr.Any{m.expr}},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
	}
	return nil
}
