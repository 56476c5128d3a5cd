package hostport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// Table is the nftables table; cleanup knows it by its prefix.
const Table = "umiak-hostport"

const (
	chainPorts = "hostports"
	chainMasq  = "masquerade"
)

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// install adds the rules of a pod, and the table around them, in one transaction.
func install(id string, maps []mapping) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(table())
	ports := c.AddChain(&nftables.Chain{Name: chainPorts, Table: t})
	for _, hook := range []struct {
		name string
		at   *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		ch := c.AddChain(&nftables.Chain{Name: hook.name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook.at, Priority: nftables.ChainPriorityNATDest})
		c.FlushChain(ch)
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name},
		}})
	}
	// Nobody but the host itself may send to 127.0.0.0/8: route_localnet would let pods do so.
	raw := c.AddChain(&nftables.Chain{Name: "localnet", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	c.FlushChain(raw)
	c.AddRule(&nftables.Rule{Table: t, Chain: raw, Exprs: concat(
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_LOOPBACK)}},
		family(true),
		[]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127}},
			&expr.Verdict{Kind: expr.VerdictDrop},
		})})
	masq := c.AddChain(&nftables.Chain{Name: chainMasq, Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})

	tag := userdata.AppendString(nil, userdata.TypeComment, id)
	masked := map[netip.Addr]bool{}
	for _, m := range maps {
		c.AddRule(&nftables.Rule{Table: t, Chain: ports, UserData: tag, Exprs: m.translate()})
		if masked[m.pod] {
			continue
		}
		masked[m.pod] = true
		// The pod itself, and the host at localhost, must see the answer come back through the host.
		c.AddRule(&nftables.Rule{Table: t, Chain: masq, UserData: tag, Exprs: concat(family(m.pod.Is4()), is(m.pod, true), is(m.pod, false), []expr.Any{&expr.Masq{}})})
		if m.pod.Is4() {
			c.AddRule(&nftables.Rule{Table: t, Chain: masq, UserData: tag, Exprs: concat(family(true), is(netip.AddrFrom4([4]byte{127, 0, 0, 1}), true), is(m.pod, false), []expr.Any{&expr.Masq{}})})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", Table, err)
	}
	return nil
}

// translate is the rule that leads a port of the host to the pod.
func (m mapping) translate() []expr.Any {
	out := family(m.pod.Is4())
	if m.host.IsValid() {
		out = concat(out, is(m.host, false))
	} else {
		out = concat(out, notTheHostsOwn(m.pod.Is4()))
	}
	af := uint32(unix.NFPROTO_IPV4)
	if !m.pod.Is4() {
		af = unix.NFPROTO_IPV6
	}
	return concat(out, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{m.proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, m.hostPort)},
		&expr.Immediate{Register: 1, Data: m.pod.AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, m.podPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: af, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	})
}

// notTheHostsOwn matches all but those of the host's addresses at which only the host itself is reached: programs of
// the host use them among themselves, as systemd-resolved does 127.0.0.53 and the node's DNS its own addresses. A port
// that is asked for at such an address (hostIP) is led to the pod. 127.0.0.1 stays, where people expect a pod's port;
// ::1 never worked, since the kernel sends nothing from there to elsewhere.
func notTheHostsOwn(v4 bool) []expr.Any {
	if v4 {
		load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
		return []expr.Any{
			load, &expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: []byte{127, 0, 0, 2}, ToData: []byte{127, 255, 255, 255}},
			load, &expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: []byte{169, 254, 0, 0}, ToData: []byte{169, 254, 255, 255}},
		}
	}
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16}
	linkLocal := netip.MustParsePrefix("fe80::/10")
	return []expr.Any{
		load, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: netip.IPv6Loopback().AsSlice()},
		load, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: netip.MustParseAddr(wellknown.DNSv6).AsSlice()},
		load, &expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: linkLocal.Addr().AsSlice(), ToData: netip.MustParseAddr("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff").AsSlice()},
	}
}

func concat(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func family(v4 bool) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if !v4 {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}
}

// is matches the source or destination address.
func is(a netip.Addr, source bool) []expr.Any {
	offset, length := uint32(16), uint32(4)
	if !a.Is4() {
		offset, length = 24, 16
	}
	if source {
		offset -= length // the source stands before the destination in both headers
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// remove deletes the rules of a container; there need be none.
func remove(id string) error {
	for try := 0; ; try++ {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		n := 0
		for _, name := range []string{chainPorts, chainMasq} {
			rules, err := rulesOf(c, name, id)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if err := c.DelRule(r); err != nil {
					return fmt.Errorf("delete rule: %w", err)
				}
				n++
			}
		}
		if n == 0 {
			return nil
		}
		err = c.Flush()
		// Between list and delete, another call for the same container may have deleted them.
		if err == nil || try == 3 || !errors.Is(err, unix.ENOENT) {
			if err != nil {
				return fmt.Errorf("write nftables table %s: %w", Table, err)
			}
			return nil
		}
	}
}

// frameWhole reports whether the chains that lead to the pods' rules are there with their rules.
func frameWhole() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	t := table()
	for _, name := range []string{"prerouting", "output", "localnet"} {
		rules, err := c.GetRules(t, &nftables.Chain{Name: name, Table: t})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, fmt.Errorf("list rules of nftables table %s: %w", Table, err)
		}
		if len(rules) == 0 {
			return false, nil
		}
	}
	return true, nil
}

// count is how many ports are led to a container.
func count(id string) (int, error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("open nftables: %w", err)
	}
	rules, err := rulesOf(c, chainPorts, id)
	return len(rules), err
}

func rulesOf(c *nftables.Conn, chain, id string) ([]*nftables.Rule, error) {
	t := table()
	all, err := c.GetRules(t, &nftables.Chain{Name: chain, Table: t})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", Table, err)
	}
	want := userdata.AppendString(nil, userdata.TypeComment, id)
	var out []*nftables.Rule
	for _, r := range all {
		if bytes.Equal(r.UserData, want) {
			out = append(out, r)
		}
	}
	return out, nil
}
