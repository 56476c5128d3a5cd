package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Table is the nftables table with the masquerade rules; cleanup knows it by its prefix.
const Table = "umiak-network"

// applyRules replaces the table in one transaction: packets from this node's pods that leave the cluster
// take the node's address, and what they send to an address of Services that no Service has is rejected: the host's
// route to these addresses leads to the loopback interface (agent/dataplane/serviceroute). Nothing is accepted in a
// forward hook: an accept in one table does not overrule a drop in another, so it would only look as if it helped
// (`umiak check` finds such drops).
func applyRules(pods, cluster []netip.Prefix) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	c.AddTable(t) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	var post *nftables.Chain // a chain without rules would look like one that somebody has emptied (agent/dataplane/tables)
	if len(pods) > 0 {
		post = c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
	}
	for _, p := range pods {
		rule := from(p)
		for _, r := range slices.Concat(cluster, []netip.Prefix{multicast(p.Addr().Is4())}) {
			if r.Addr().Is4() == p.Addr().Is4() {
				rule = append(rule, address(r, false, expr.CmpOpNeq)...)
			}
		}
		c.AddRule(&nftables.Rule{Table: t, Chain: post, Exprs: append(rule, &expr.Masq{FullyRandom: true})})
	}
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	lo := make([]byte, unix.IFNAMSIZ)
	copy(lo, "lo")
	c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: lo},
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_NO_ROUTE},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

func multicast(v4 bool) netip.Prefix {
	if v4 {
		return netip.MustParsePrefix("224.0.0.0/4")
	}
	return netip.MustParsePrefix("ff00::/8")
}

// from matches packets of the prefix's family whose source lies in it.
func from(p netip.Prefix) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if !p.Addr().Is4() {
		proto = unix.NFPROTO_IPV6
	}
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}, address(p, true, expr.CmpOpEq)...)
}

// address compares the source or destination address with a prefix.
func address(p netip.Prefix, source bool, op expr.CmpOp) []expr.Any {
	p = p.Masked()
	offset, length := uint32(16), uint32(4)
	if !p.Addr().Is4() {
		offset, length = 24, 16
	}
	if source {
		offset -= length // the source stands before the destination in both headers
	}
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	}
}
