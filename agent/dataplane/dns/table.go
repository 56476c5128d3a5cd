package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Tables writes nftables tables and restores them: a *reconcile.Tables.
type Tables interface {
	Set(ctx context.Context, want ruleset.Table) error
	Remove(ctx context.Context, name string) error
}

// layout holds the parameters of the table.
type layout struct {
	addrs []netip.Addr // of the cluster's DNS
	port  uint16       // at which CoreDNS listens
	// podInterface is the one by which this node's pods ask; empty where the user brings the network. Then only what
	// enters by an interface that has one of nodeIPs is not answered.
	podInterface string
	nodeIPs      []netip.Addr
	endpoints    bool // what goes to nodeIPs, port wellknown.DNSEndpointPort, is sent to CoreDNS as well
	limits       limits
}

// limits are those of one client, by its address.
type limits struct {
	connections uint32 // of TCP, open at once; 0: clients are not limited
	queries     uint64 // by UDP, in a second, after burst
	burst       uint32
}

// defaultLimits are far above what programs do: a lookup is at most ten queries, and a connection is closed once its
// query is answered.
var defaultLimits = limits{connections: 256, queries: 2000, burst: 4000}

// apply writes the table. It reports whether clients are limited, which needs parts of the kernel that not every one
// has.
func (l layout) apply(ctx context.Context, tables Tables) (limited bool, err error) {
	if err = tables.Set(ctx, l.table()); err == nil {
		return true, nil
	}
	l.limits = limits{}
	if again := tables.Set(ctx, l.table()); again != nil {
		return false, errors.Join(err, again)
	}
	return false, nil
}

// dnsPort is the port that clients ask.
const dnsPort = 53

// table returns the table: what goes to the cluster's DNS is sent to CoreDNS, what comes to CoreDNS by another way is
// dropped, and so is what one client sends beyond the limits.
func (l layout) table() ruleset.Table {
	t := ruleset.Table{Family: ruleset.Inet, Name: Table}
	nat := func(hook string, asked []netip.AddrPort, by ruleset.Rule) ruleset.Chain {
		c := ruleset.Chain{Name: hook, Hook: &ruleset.Hook{Type: "nat", Name: hook, Priority: natPriority}}
		for _, a := range asked {
			to := AddrV4
			if a.Addr().Is6() {
				to = AddrV6
			}
			for _, proto := range []uint8{ruleset.UDP, ruleset.TCP} {
				c.Rules = append(c.Rules, slices.Concat(by, addressedTo(a.Addr()), ruleset.Rule{
					ruleset.Protocol(proto), ruleset.ToPort(a.Port()), ruleset.Count{},
					ruleset.DNATTo{To: netip.AddrPortFrom(to, l.port)},
				}))
			}
		}
		return c
	}
	in := ruleset.Chain{Name: "input", Hook: &ruleset.Hook{Type: "filter", Name: "input"}}
	for _, a := range listenAddrs(l.addrs) {
		from := append(addressedTo(a), notFrom("lo"))
		// A neighbour on the wire that sets a route to the address through this node must find nothing there.
		direct := ruleset.Match{What: ruleset.CtStatus, Mask: translated, Value: noBits}
		in.Rules = append(in.Rules, append(slices.Clip(from), direct, ruleset.Count{}, ruleset.Drop))
		if l.limits == (limits{}) {
			continue
		}
		sets, rules := l.limits.of(ruleset.FamilyOf(a))
		t.Sets = append(t.Sets, sets...)
		for _, r := range rules {
			in.Rules = append(in.Rules, slices.Concat(from, r))
		}
	}
	t.Chains = []ruleset.Chain{
		nat("prerouting", slices.Concat(withPort(l.addrs, dnsPort), l.endpointAddrs()), l.pods()),
		// The host itself may also ask the server's own addresses.
		nat("output", slices.Concat(withPort(listenAddrs(l.addrs), dnsPort), withPort(l.addrs, dnsPort),
			l.endpointAddrs()), nil),
		in,
	}
	return t
}

// withPort returns the addresses, each with the port.
func withPort(addrs []netip.Addr, port uint16) (out []netip.AddrPort) {
	for _, a := range addrs {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}

// endpointAddrs returns where another proxy sends what is for the DNS Service, in the families of that Service.
func (l layout) endpointAddrs() (out []netip.AddrPort) {
	if !l.endpoints {
		return nil
	}
	for _, a := range l.nodeIPs {
		if a = a.Unmap(); slices.ContainsFunc(l.addrs, func(c netip.Addr) bool { return c.Is4() == a.Is4() }) {
			out = append(out, netip.AddrPortFrom(a, wellknown.DNSEndpointPort))
		}
	}
	return out
}

// translated is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h, the status of connections with destination NAT.
var translated, noBits = ruleset.Host32(1 << 5).Named("dnat"), ruleset.Host32(0)

// of returns the sets that count a family's clients, and the rules that drop what is more than the limits.
func (l limits) of(f ruleset.Family) ([]ruleset.SetSpec, []ruleset.Rule) {
	suffix, key := "4", ruleset.Addr4
	if f == ruleset.IPv6 {
		suffix, key = "6", ruleset.Addr6
	}
	connections := ruleset.SetSpec{Name: "connections" + suffix, Key: []ruleset.Field{key}, Dynamic: true,
		Permanent: true}
	queries := ruleset.SetSpec{Name: "queries" + suffix, Key: []ruleset.Field{key}, Dynamic: true, Timeout: time.Minute}
	client := []ruleset.Term{ruleset.SaddrOf(f)}
	return []ruleset.SetSpec{connections, queries}, []ruleset.Rule{
		{ruleset.Protocol(ruleset.TCP), ruleset.New{},
			ruleset.ConnectionsOver{Set: connections.Name, Key: client, Count: l.connections}, ruleset.Count{},
			ruleset.Drop},
		{ruleset.Protocol(ruleset.UDP), ruleset.RateOver{Set: queries.Name, Key: client, Rate: l.queries,
			Burst: l.burst},
			ruleset.Count{}, ruleset.Drop},
	}
}

// addressedTo matches packets to an address.
func addressedTo(a netip.Addr) ruleset.Rule {
	f := ruleset.FamilyOf(a)
	return ruleset.Rule{ruleset.Of(f), ruleset.Match{What: ruleset.DaddrOf(f), Value: ruleset.Address(a)}}
}

// notFrom matches packets that come in by another interface.
func notFrom(name string) ruleset.Match {
	return ruleset.Match{What: ruleset.InInterface, Not: true, Value: ruleset.Interface(name)}
}

// pods matches what this node's pods send.
func (l layout) pods() (out ruleset.Rule) {
	if l.podInterface != "" {
		return ruleset.Rule{ruleset.Match{What: ruleset.InInterface, Value: ruleset.Interface(l.podInterface)}}
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
			out = append(out, notFrom(i.Name))
		}
	}
	return out
}
