package podsource

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
)

// Table is the nftables table.
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

// table returns the table as conn sees it.
func table(conn *netfilter.Conn) *netfilter.Table {
	return &netfilter.Table{Conn: conn, Family: ruleset.Netdev, Name: Table}
}

// Check makes the kernel check a pod's interface from now on, by these addresses alone: its chain is written, whatever
// an earlier pod with an interface of this name has left. Check also deletes the chains of interfaces that are gone,
// which newer kernels keep.
func Check(ctx context.Context, p Pod) error {
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	t := table(conn)
	old, err := chains(t)
	if err != nil {
		return err
	}
	here, err := interfaces()
	if err != nil {
		return err
	}
	return t.Change(ctx, func(b *netfilter.Batch) error {
		t.AddTable(b)
		for _, c := range old {
			if c.device == p.Interface || !here[c.device] {
				t.FlushRules(b, c.name())
				t.DeleteChain(b, c.name())
			}
		}
		c := p.described()
		t.AddChain(b, c)
		return t.AddRules(b, c)
	})
}

// Off removes the table, if it exists.
func Off(ctx context.Context) error {
	_, err := netfilter.Remove(ctx, Table)
	return err
}

// checked is what the table should hold: the chains of some pods, and those of other interfaces that exist, whose pods
// are just being started.
type checked struct {
	pods map[string]Pod  // by interface
	here map[string]bool // interfaces that exist
}

var _ netfilter.Desired = checked{}

func (c checked) Chains() iter.Seq[ruleset.Chain] {
	return func(yield func(ruleset.Chain) bool) {
		for _, p := range c.pods {
			if !yield(p.described()) {
				return
			}
		}
	}
}

func (c checked) Sets() iter.Seq[ruleset.SetSpec] { return func(func(ruleset.SetSpec) bool) {} }
func (c checked) Elems() iter.Seq[ruleset.Elem]   { return func(func(ruleset.Elem) bool) {} }

func (c checked) Finder(string) func(string) (ruleset.Elem, bool) {
	return func(string) (e ruleset.Elem, ok bool) { return e, false }
}

func (c checked) Keeps(name string) bool {
	device := parseChain(name).device
	_, known := c.pods[device]
	return c.here[device] && !known
}

// chain is the chain of an interface. Its name is the interface's and, after a point, a digest of its rules; those of
// an older release have no digest.
type chain struct{ device, digest string }

func (c chain) name() string { return strings.TrimSuffix(c.device+"."+c.digest, ".") }

func parseChain(name string) chain {
	if i := strings.LastIndexByte(name, '.'); i >= 0 && len(name)-i-1 == digestLen {
		return chain{name[:i], name[i+1:]}
	}
	return chain{device: name}
}

// digestLen is the length of a digest in a chain's name.
const digestLen = 12

// described returns the chain that checks the pod.
func (p Pod) described() ruleset.Chain {
	rules := p.rules()
	h := sha256.New()
	for _, r := range rules {
		_, _ = fmt.Fprintln(h, r)
	}
	c := chain{p.Interface, hex.EncodeToString(h.Sum(nil)[:digestLen/2])}
	hook := ruleset.Hook{Type: "filter", Name: "ingress", Device: p.Interface}
	return ruleset.Chain{Name: c.name(), Hook: &hook, Rules: rules}
}

// chains returns the table's chains. A kernel without the family has none.
func chains(t *netfilter.Table) (out []chain, err error) {
	names, err := t.Chains()
	for _, n := range names {
		out = append(out, parseChain(n))
	}
	return out, err
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

// The types of ICMPv6 messages (RFC 4861): all from the first to the last are neighbour discovery.
const (
	routerSolicitation    = 133
	routerAdvertisement   = 134
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	redirect              = 137
)

// The addresses of IPv6 that hosts use before and beside their own.
var (
	linkLocal   = netip.MustParsePrefix("fe80::/10")
	unspecified = netip.IPv6Unspecified()
)

// rules drop what the pod may not send, in the order in which they are tried.
func (p Pod) rules() []ruleset.Rule {
	var v4, v6 []netip.Addr
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	// As the frame arrived: a tag that the kernel has already taken off stands there again. Tagged frames come
	// without the tag to the node and to other pods, and neither this table nor bridge-nf looks into all of them.
	out := []ruleset.Rule{drop(notKind(unix.ETH_P_IP), notKind(unix.ETH_P_ARP), notKind(unix.ETH_P_IPV6))}
	if len(p.MAC) == 6 {
		out = append(out, drop(ruleset.Match{What: ruleset.EtherSaddr, Not: true, Value: ruleset.Hardware(p.MAC)}))
	}
	foreign := append(none(ruleset.NDTarget, v6), outside(ruleset.NDTarget, linkLocal))
	kind := func(k uint16) ruleset.Rule { return ruleset.Rule{ether(k)} }
	return append(out,
		drop(slices.Concat(kind(unix.ETH_P_IP), none(ruleset.Saddr, v4))...),
		drop(slices.Concat(kind(unix.ETH_P_ARP), none(ruleset.ARPSaddr, v4))...),
		drop(slices.Concat(kind(unix.ETH_P_IPV6), none(ruleset.Saddr6, append(slices.Clone(v6), unspecified)),
			ruleset.Rule{outside(ruleset.Saddr6, linkLocal)})...),
		drop(slices.Concat(icmpv6(neighborAdvertisement, neighborAdvertisement), foreign)...),
		// Without a source it asks whether another host has the address: a host that receives that for its own address
		// gives it up.
		drop(slices.Concat(icmpv6(neighborSolicitation, neighborSolicitation),
			ruleset.Rule{ruleset.Match{What: ruleset.Saddr6, Value: ruleset.Address(unspecified)}}, foreign)...),
		drop(icmpv6(routerAdvertisement, routerAdvertisement)...),
		drop(icmpv6(redirect, redirect)...),
		drop(append(icmpv6(routerSolicitation, redirect), // RFC 6980
			ruleset.Match{What: ruleset.HasFragment, Value: ruleset.Byte(1)})...),
		// The rest is about IPv6 whose headers lead to no protocol, because they go on in another fragment (RFC
		// 7112): the rules above have not seen what it is.
		ruleset.Rule{ether(unix.ETH_P_IPV6), ruleset.Exists{What: ruleset.L4}, ruleset.Accept},
		ruleset.Rule{ether(unix.ETH_P_IPV6),
			ruleset.Match{What: ruleset.FragmentWord, Mask: fragmentOffset, Not: true, Value: ruleset.Net16(0)},
			ruleset.Accept},
		drop(ether(unix.ETH_P_IPV6)),
	)
}

// fragmentOffset are the bits of a fragment header's second word that hold the offset.
var fragmentOffset = ruleset.Net16(0xfff8).Named("0xfff8")

// drop returns a rule that counts and drops what matches all of the parts.
func drop(parts ...ruleset.Stmt) ruleset.Rule {
	return append(slices.Clip(ruleset.Rule(parts)), ruleset.Count{}, ruleset.Drop)
}

// hex16 is a number of 16 bits of a frame.
func hex16(n uint16) ruleset.Value { return ruleset.Net16(n).Named(fmt.Sprintf("%#x", n)) }

// notKind matches frames that have another type, or a tag, where the type stands.
func notKind(kind uint16) ruleset.Match {
	return ruleset.Match{What: ruleset.EtherType, Not: true, Value: hex16(kind)}
}

// ether matches a kind of frame.
func ether(kind uint16) ruleset.Match {
	return ruleset.Match{What: ruleset.EtherProtocol, Value: hex16(kind)}
}

// icmpv6 matches messages of types, behind whatever extension headers.
func icmpv6(first, last byte) ruleset.Rule {
	return ruleset.Rule{ether(unix.ETH_P_IPV6), ruleset.Protocol(unix.IPPROTO_ICMPV6),
		ruleset.InRange{What: ruleset.ICMPv6Type, From: ruleset.Byte(first), To: ruleset.Byte(last)}}
}

// none matches if what is loaded is none of the addresses.
func none(what ruleset.Load, addrs []netip.Addr) (out ruleset.Rule) {
	for _, a := range addrs {
		out = append(out, ruleset.Match{What: what, Not: true, Value: ruleset.Address(a)})
	}
	return out
}

// outside matches if what is loaded is not in the range.
func outside(what ruleset.Load, p netip.Prefix) ruleset.InPrefix {
	return ruleset.InPrefix{What: what, Prefix: p, Not: true}
}
