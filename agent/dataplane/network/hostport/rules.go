package hostport

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Table is the nftables table.
const Table = "umiak-hostport"

const (
	chainPorts = "hostports"
	chainMasq  = "masquerade"
)

// The priorities at which packets come first, and at which everybody's destination and source NAT are.
const (
	raw    = -300
	dstNAT = -100
	srcNAT = 100
)

// table is the table in the kernel. Plugin and agent write it, one pod at a time.
type table struct{ netfilter.Table }

// openTable returns the table as conn sees it.
func openTable(conn *netfilter.Conn) table {
	return table{netfilter.Table{Conn: conn, Family: ruleset.Inet, Name: Table}}
}

// within calls f with the table, through a socket of its own.
func within(f func(table) error) error {
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	return f(openTable(conn))
}

// podChains returns the chains that hold the rules of pods, without them.
func podChains() []ruleset.Chain {
	return []ruleset.Chain{
		{Name: chainPorts},
		{Name: chainMasq, Hook: &ruleset.Hook{Type: "nat", Name: "postrouting", Priority: srcNAT}},
	}
}

// frame returns the chains that lead to the rules of pods.
func frame() []ruleset.Chain {
	dispatch := func(hook string) ruleset.Chain {
		return ruleset.Chain{Name: hook, Hook: &ruleset.Hook{Type: "nat", Name: hook, Priority: dstNAT},
			Rules: []ruleset.Rule{{ruleset.Local{What: ruleset.Daddr}, ruleset.Jump{Chain: chainPorts}}}}
	}
	return []ruleset.Chain{
		dispatch("prerouting"),
		dispatch("output"),
		// Only the host itself may send to 127.0.0.0/8: route_localnet would let pods do so.
		{Name: "localnet", Hook: &ruleset.Hook{Type: "filter", Name: "prerouting", Priority: raw}, Rules: []ruleset.Rule{{
			ruleset.Match{What: ruleset.InType, Not: true, Value: ruleset.Host16(unix.ARPHRD_LOOPBACK).Named("loopback")},
			ruleset.Of(ruleset.IPv4),
			ruleset.InPrefix{What: ruleset.Daddr, Prefix: netip.MustParsePrefix("127.0.0.0/8")},
			ruleset.Drop,
		}}},
	}
}

// podRules returns the rules of a pod by chain, each with the container's ID, by which they are found again.
func podRules(id string, maps []mapping) map[string][]ruleset.Rule {
	out := map[string][]ruleset.Rule{}
	tag := ruleset.Comment(id)
	done := map[netip.Addr]bool{}
	for _, m := range maps {
		out[chainPorts] = append(out[chainPorts], append(m.translate(), tag))
		if done[m.pod] {
			continue
		}
		done[m.pod] = true
		// The pod itself, and the host at localhost, must see the answer come back through the host.
		masq := func(source netip.Addr) {
			out[chainMasq] = append(out[chainMasq],
				ruleset.Rule{ruleset.Of(ruleset.FamilyOf(m.pod)), from(source), to(m.pod), ruleset.Masquerade{KeepPort: true}, tag})
		}
		masq(m.pod)
		if m.pod.Is4() {
			masq(netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
	}
	return out
}

func from(a netip.Addr) ruleset.Match {
	return ruleset.Match{What: ruleset.SaddrOf(ruleset.FamilyOf(a)), Value: ruleset.Address(a)}
}

func to(a netip.Addr) ruleset.Match {
	return ruleset.Match{What: ruleset.DaddrOf(ruleset.FamilyOf(a)), Value: ruleset.Address(a)}
}

// translate returns the rule that leads a port of the host to the pod.
func (m mapping) translate() ruleset.Rule {
	f := ruleset.FamilyOf(m.pod)
	host := notTheHostsOwn(f)
	if m.host.IsValid() {
		host = ruleset.Rule{to(m.host)}
	}
	return slices.Concat(ruleset.Rule{ruleset.Of(f)}, host, ruleset.Rule{
		ruleset.Protocol(m.proto), ruleset.ToPort(m.hostPort), ruleset.DNATTo{To: netip.AddrPortFrom(m.pod, m.podPort)},
	})
}

// notTheHostsOwn matches all but those of the host's addresses at which only the host itself is reached: programs of
// the host use them among themselves, as systemd-resolved does 127.0.0.53 and the node's DNS its own addresses. A port
// that is asked for at such an address (hostIP) is led to the pod. 127.0.0.1 stays, where people expect a pod's port;
// ::1 never worked, since the kernel sends nothing from there to elsewhere.
func notTheHostsOwn(f ruleset.Family) ruleset.Rule {
	outside := func(from, to string) ruleset.Stmt {
		return ruleset.InRange{What: ruleset.DaddrOf(f), Not: true,
			From: ruleset.Address(netip.MustParseAddr(from)), To: ruleset.Address(netip.MustParseAddr(to))}
	}
	if f == ruleset.IPv4 {
		return ruleset.Rule{outside("127.0.0.2", "127.255.255.255"), outside("169.254.0.0", "169.254.255.255")}
	}
	other := func(a netip.Addr) ruleset.Stmt {
		return ruleset.Match{What: ruleset.Daddr6, Not: true, Value: ruleset.Address(a)}
	}
	return ruleset.Rule{
		other(netip.IPv6Loopback()), other(netip.MustParseAddr(wellknown.DNSv6)),
		outside("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	}
}

// addFrame appends the table and its chains, with the rules of the frame, to a batch.
func (t table) addFrame(b *netfilter.Batch) error {
	pods, frame := podChains(), frame()
	t.AddTable(b)
	for _, c := range slices.Concat(pods[:1], frame, pods[1:]) { // each after those that it jumps to
		t.AddChain(b, c)
	}
	for _, c := range frame {
		t.FlushRules(b, c.Name)
		if err := t.AddRules(b, c); err != nil {
			return err
		}
	}
	return nil
}

// addPod appends the rules of a pod to a batch.
func (t table) addPod(b *netfilter.Batch, id string, maps []mapping) error {
	rules := podRules(id, maps)
	for _, c := range podChains() {
		c.Rules = rules[c.Name]
		if err := t.AddRules(b, c); err != nil {
			return err
		}
	}
	return nil
}

// install adds the rules of a pod, and the table around them, in one step.
func install(ctx context.Context, id string, maps []mapping) error {
	return within(func(t table) error {
		return t.Change(ctx, func(b *netfilter.Batch) error { return errors.Join(t.addFrame(b), t.addPod(b, id, maps)) })
	})
}

// removeTries bounds how often remove reads and writes again.
const removeTries = 4

// remove deletes the rules of a container; it is no error if there are none.
func remove(ctx context.Context, id string) error {
	return within(func(t table) error {
		for try := 1; ; try++ {
			err := t.Change(ctx, func(b *netfilter.Batch) error { return t.drop(b, id) })
			// Between reading and writing, another call for the same container may have deleted them.
			if err == nil || try == removeTries || !netfilter.IsNotFound(err) {
				return err
			}
		}
	})
}

// drop appends the removal of a container's rules to a batch.
func (t table) drop(b *netfilter.Batch, id string) error {
	for _, c := range podChains() {
		rules, err := t.of(c.Name, id)
		if err != nil {
			return err
		}
		for _, r := range rules {
			t.DeleteRule(b, c.Name, r.Handle)
		}
	}
	return nil
}

// of returns the rules of a container in a chain.
func (t table) of(chain, id string) ([]netfilter.Rule, error) {
	all, err := t.Rules(chain)
	return slices.DeleteFunc(all, func(r netfilter.Rule) bool { return r.Comment != id }), err
}

// count returns how many ports lead to a container.
func count(id string) (n int, err error) {
	err = within(func(t table) error {
		rules, err := t.of(chainPorts, id)
		n = len(rules)
		return err
	})
	return n, err
}

// frameWhole reports whether the chains that lead to the pods' rules have their rules.
func (t table) frameWhole() (bool, error) {
	for _, c := range frame() {
		if whole, err := t.has(c.Name, c.Rules, func(netfilter.Rule) bool { return true }); err != nil || !whole {
			return false, err
		}
	}
	return true, nil
}

// podWhole reports whether the kernel has the rules of a pod.
func (t table) podWhole(id string, maps []mapping) (bool, error) {
	want := podRules(id, maps)
	mine := func(r netfilter.Rule) bool { return r.Comment == id }
	for _, c := range podChains() {
		if whole, err := t.has(c.Name, want[c.Name], mine); err != nil || !whole {
			return false, err
		}
	}
	return true, nil
}

// has reports whether the rules of a chain that mine selects are the wanted ones, in their order.
func (t table) has(chain string, want []ruleset.Rule, mine func(netfilter.Rule) bool) (bool, error) {
	have, err := t.Rules(chain)
	have = slices.DeleteFunc(have, func(r netfilter.Rule) bool { return !mine(r) })
	same := func(h netfilter.Rule, w ruleset.Rule) bool { return h.Digest == netfilter.Digest(w) }
	return slices.EqualFunc(have, want, same), err
}
