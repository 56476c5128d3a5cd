package podsource

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the nftables table; cleanup knows it by its prefix.
const Table = "umiak-source"

// Pod is one pod's interface.
type Pod struct {
	// Interface is the one on the host.
	Interface string
	// MAC is the pod's own; nil is not checked.
	MAC net.HardwareAddr
	// Addrs are the pod's, of both families.
	Addrs []netip.Addr
}

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyNetdev, Name: Table}
}

// Check has a pod's interface checked from now on, by these addresses alone. It also removes chains of interfaces that are
// gone, which newer kernels keep.
func Check(p Pod) error { return put([]Pod{p}, true) }

// Off removes the table, if it is there.
func Off() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(table()) // so that there is one to delete
	c.DelTable(table())
	if err := c.Flush(); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("delete nftables table %s: %w", Table, err)
	}
	return nil
}

// put writes the chains of pods in one transaction, each anew where replace says so, otherwise where the one that is there
// has other rules.
func put(pods []Pod, replace bool) error {
	there, err := chains()
	if err != nil {
		return err
	}
	here, err := interfaces()
	if err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(table())
	stale := func(ch chain) bool {
		return !here[ch.device] || slices.ContainsFunc(pods, func(p Pod) bool { return p.Interface == ch.device && (replace || p.chain() != ch) })
	}
	for _, old := range there {
		if stale(old) {
			ch := &nftables.Chain{Name: old.name(), Table: t}
			c.FlushChain(ch)
			c.DelChain(ch)
		}
	}
	for _, p := range pods {
		if !replace && slices.Contains(there, p.chain()) {
			continue
		}
		policy := nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{
			Name: p.chain().name(), Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
			Priority: nftables.ChainPriorityFilter, Device: p.Interface, Policy: &policy,
		})
		for _, r := range p.rules() {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

// chain is the chain of an interface. Its name is the interface's and, after a point, a digest of its rules, by which those of
// an older release are known; they have none.
type chain struct{ device, digest string }

func (c chain) name() string { return strings.TrimSuffix(c.device+"."+c.digest, ".") }

func (p Pod) chain() chain {
	h := sha256.New()
	for _, r := range p.rules() {
		for _, e := range r {
			raw, _ := expr.Marshal(unix.NFPROTO_NETDEV, e) // what cannot be written is refused when it is written
			_, _ = h.Write(raw)
		}
		_, _ = h.Write([]byte("\n"))
	}
	return chain{p.Interface, hex.EncodeToString(h.Sum(nil)[:digestLen/2])}
}

// digestLen is the length of a digest in a chain's name.
const digestLen = 12

// chains are those that are there.
func chains() ([]chain, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	list, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list chains of nftables table %s: %w", Table, err)
	}
	var out []chain
	for _, ch := range list {
		if ch.Table.Name != Table {
			continue
		}
		one := chain{device: ch.Name}
		if i := strings.LastIndexByte(ch.Name, '.'); i >= 0 && len(ch.Name)-i-1 == digestLen {
			one = chain{ch.Name[:i], ch.Name[i+1:]}
		}
		out = append(out, one)
	}
	return out, nil
}

// interfaces are those of the host.
func interfaces() (map[string]bool, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := make(map[string]bool, len(list))
	for _, i := range list {
		out[i.Name] = true
	}
	return out, nil
}

// Where things stand in a frame.
const (
	ethSource, ethType = 6, 12
	arpSender          = 14 // of Ethernet and IPv4
	v4Source, v6Source = 12, 8
	fragmentHeader     = 44
	fragmentOffset     = 2 // in the fragment header, the upper 13 bits of 16
	ndTarget           = 8 // of a neighbour solicitation or advertisement
)

// Types of ICMPv6 messages (RFC 4861): all that lies between the first and the last is neighbour discovery.
const (
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	redirect              = 137
)

// rules drop what the pod may not send, in the order in which they are tried.
func (p Pod) rules() [][]expr.Any {
	var v4, v6 []netip.Addr
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	linkLocal := netip.MustParsePrefix("fe80::/10")
	unspecified := netip.IPv6Unspecified()
	// As the frame arrived: a tag that the kernel has already taken off stands there again. Tagged frames come without the tag to
	// the node and to other pods, and neither this table nor bridge-nf looks into all of them.
	out := [][]expr.Any{drop(notKind(unix.ETH_P_IP), notKind(unix.ETH_P_ARP), notKind(unix.ETH_P_IPV6))}
	if len(p.MAC) == 6 {
		out = append(out, drop(compare(expr.PayloadBaseLLHeader, ethSource, p.MAC, expr.CmpOpNeq)))
	}
	foreign := slices.Concat(none(expr.PayloadBaseTransportHeader, ndTarget, v6), outside(expr.PayloadBaseTransportHeader, ndTarget, linkLocal))
	return append(out,
		drop(ether(unix.ETH_P_IP), none(expr.PayloadBaseNetworkHeader, v4Source, v4)),
		drop(ether(unix.ETH_P_ARP), none(expr.PayloadBaseNetworkHeader, arpSender, v4)),
		drop(ether(unix.ETH_P_IPV6), none(expr.PayloadBaseNetworkHeader, v6Source, append(slices.Clone(v6), unspecified)),
			outside(expr.PayloadBaseNetworkHeader, v6Source, linkLocal)),
		drop(icmpv6(neighborAdvertisement, neighborAdvertisement), foreign),
		// Without a source it asks whether somebody has the address already: who hears that of its own gives it up.
		drop(icmpv6(neighborSolicitation, neighborSolicitation),
			compare(expr.PayloadBaseNetworkHeader, v6Source, unspecified.AsSlice(), expr.CmpOpEq), foreign),
		drop(icmpv6(routerAdvertisement, routerAdvertisement)),
		drop(icmpv6(redirect, redirect)),
		drop(icmpv6(routerSolicitation, redirect), fragment(&expr.Exthdr{Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}})), // RFC 6980
		// What follows is about IPv6 whose headers lead to no protocol, because the rest of them comes in another fragment
		// (RFC 7112): the rules above have not seen what it is.
		slices.Concat(ether(unix.ETH_P_IPV6), protocol(), verdict(expr.VerdictAccept)),
		slices.Concat(ether(unix.ETH_P_IPV6), fragment(&expr.Exthdr{Offset: fragmentOffset, Len: 2},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xf8}, Xor: []byte{0, 0}},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}}), verdict(expr.VerdictAccept)),
		drop(ether(unix.ETH_P_IPV6)),
	)
}

// drop is a rule that counts and drops what matches all of the parts.
func drop(parts ...[]expr.Any) []expr.Any {
	return append(slices.Concat(parts...), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// notKind matches frames that have another type, or a tag, where the type stands.
func notKind(kind uint16) []expr.Any {
	return compare(expr.PayloadBaseLLHeader, ethType, binary.BigEndian.AppendUint16(nil, kind), expr.CmpOpNeq)
}

// protocol loads the protocol behind the extension headers. It matches if they lead to one.
func protocol() []expr.Any { return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}} }

// icmpv6 matches messages of types, behind whatever extension headers.
func icmpv6(first, last byte) []expr.Any {
	return slices.Concat(ether(unix.ETH_P_IPV6), protocol(), []expr.Any{
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_ICMPV6}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{first}, ToData: []byte{last}},
	})
}

// fragment loads from the first fragment header of a packet and matches what follows.
func fragment(load *expr.Exthdr, match ...expr.Any) []expr.Any {
	load.DestRegister, load.Type, load.Op = 1, fragmentHeader, expr.ExthdrOpIpv6
	return append([]expr.Any{load}, match...)
}

// ether matches the kind of frame.
func ether(kind uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(kind >> 8), byte(kind)}},
	}
}

func compare(base expr.PayloadBase, offset uint32, data []byte, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: op, Register: 1, Data: data},
	}
}

// none matches if what stands there is none of these.
func none(base expr.PayloadBase, offset uint32, addrs []netip.Addr) (out []expr.Any) {
	for _, a := range addrs {
		out = append(out, compare(base, offset, a.AsSlice(), expr.CmpOpNeq)...)
	}
	return out
}

// outside matches if what stands there is not in the range.
func outside(base expr.PayloadBase, offset uint32, p netip.Prefix) []expr.Any {
	n := p.Addr().BitLen() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(n)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: net.CIDRMask(p.Bits(), n*8), Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}
