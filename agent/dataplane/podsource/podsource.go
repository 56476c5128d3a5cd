package podsource

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

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

// put writes the chains of pods in one transaction, each anew where replace says so, otherwise where there is none.
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
	for _, name := range there {
		if !here[name] || replace && slices.ContainsFunc(pods, func(p Pod) bool { return p.Interface == name }) {
			ch := &nftables.Chain{Name: name, Table: t}
			c.FlushChain(ch)
			c.DelChain(ch)
		}
	}
	for _, p := range pods {
		if !replace && slices.Contains(there, p.Interface) {
			continue
		}
		policy := nftables.ChainPolicyAccept
		ch := c.AddChain(&nftables.Chain{
			Name: p.Interface, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
			Priority: nftables.ChainPriorityFilter, Device: p.Interface, Policy: &policy,
		})
		for _, r := range p.rules() {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(r, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

// chains are the interfaces that have one.
func chains() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	list, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return nil, fmt.Errorf("list chains of nftables table %s: %w", Table, err)
	}
	var out []string
	for _, ch := range list {
		if ch.Table.Name == Table {
			out = append(out, ch.Name)
		}
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
	ethSource          = 6
	arpSender          = 14 // of Ethernet and IPv4
	v4Source, v6Source = 12, 8
	v6Next             = 6
	advertised         = 8 // the target of a neighbour advertisement
	advertisement      = 136
)

// rules match what the pod may not send, each with the drop still to come.
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
	var out [][]expr.Any
	if len(p.MAC) == 6 {
		out = append(out, compare(expr.PayloadBaseLLHeader, ethSource, p.MAC, expr.CmpOpNeq))
	}
	return append(out,
		slices.Concat(ether(unix.ETH_P_IP), none(expr.PayloadBaseNetworkHeader, v4Source, v4)),
		slices.Concat(ether(unix.ETH_P_ARP), none(expr.PayloadBaseNetworkHeader, arpSender, v4)),
		slices.Concat(ether(unix.ETH_P_IPV6), none(expr.PayloadBaseNetworkHeader, v6Source, append(slices.Clone(v6), netip.IPv6Unspecified())),
			outside(expr.PayloadBaseNetworkHeader, v6Source, linkLocal)),
		slices.Concat(ether(unix.ETH_P_IPV6), compare(expr.PayloadBaseNetworkHeader, v6Next, []byte{unix.IPPROTO_ICMPV6}, expr.CmpOpEq),
			compare(expr.PayloadBaseTransportHeader, 0, []byte{advertisement}, expr.CmpOpEq),
			none(expr.PayloadBaseTransportHeader, advertised, v6), outside(expr.PayloadBaseTransportHeader, advertised, linkLocal)),
	)
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
