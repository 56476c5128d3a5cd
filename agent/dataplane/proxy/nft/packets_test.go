package nft

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

type host = nettest.Host

// world is a node with two pods, another node with a pod, and a client that is neither.
type world struct {
	f                        rules.Family
	wire, node, a, b, remote *host
	client                   *host
	builder                  *rules.Builder
	table                    *Table
	conn                     *netfilter.Conn
}

func newWorld(t *testing.T, f rules.Family, mod func(*rules.Config)) *world {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{f: f}
	w.wire, w.node, w.a, w.b = nettest.New(t, "wire"), nettest.New(t, "node"), nettest.New(t, "a"), nettest.New(t, "b")
	w.remote, w.client = nettest.New(t, "remote"), nettest.New(t, "client")
	w.wire.Bridge(t, "br0")
	w.node.Bridge(t, "cni0", "10.42.0.1/24", "fd42::1/112")
	w.node.Plug(t, "eth0", w.wire, "br0", "192.0.2.1/24", "fd02::1/64")
	w.client.Plug(t, "eth0", w.wire, "br0", "192.0.2.2/24", "fd02::2/64")
	w.remote.Plug(t, "eth0", w.wire, "br0", "192.0.2.3/24", "fd02::3/64")
	w.remote.Address(t, "lo", "10.42.1.21/32", "fd42::1:21/128")
	for i, p := range []*host{w.a, w.b} {
		p.Plug(t, "eth0", w.node, "cni0", fmt.Sprintf("10.42.0.%d/24", 11+i), fmt.Sprintf("fd42::%d/112", 11+i))
		p.Route(t, "0.0.0.0/0", "10.42.0.1")
		p.Route(t, "::/0", "fd42::1")
	}
	for _, h := range []*host{w.node, w.remote} {
		h.Sysctl(t, "net/ipv4/ip_forward", "1")
		h.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
		h.Sysctl(t, "net/ipv4/icmp_ratelimit", "0") // more refusals than in a life
		h.Sysctl(t, "net/ipv6/icmp/ratelimit", "0")
	}
	w.node.Route(t, "10.42.1.0/24", "192.0.2.3")
	w.node.Route(t, "fd42::1:0/112", "fd02::3")
	w.node.Route(t, "0.0.0.0/0", "192.0.2.2")
	w.node.Route(t, "::/0", "fd02::2")
	w.remote.Route(t, "10.42.0.0/24", "192.0.2.1")
	w.remote.Route(t, "fd42::/112", "fd02::1")
	// The client sends Services' addresses to the node; to pods it has no route.
	for _, r := range [][2]string{{"10.43.0.0/16", "192.0.2.1"}, {"fd43::/64", "fd02::1"},
		{"198.51.100.0/24", "192.0.2.1"}, {"fd98::/64", "fd02::1"}} {
		w.client.Route(t, r[0], r[1])
	}
	for _, p := range []*host{w.a, w.b, w.remote} {
		p.Serve(t, 8080)
	}
	cfg := rules.Config{Family: f, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(w.pick("10.42.0.0/16", "fd42::/64"))}}
	if mod != nil {
		mod(&cfg)
	}
	w.builder = rules.NewBuilder(cfg)
	var err error
	w.node.Do(func() {
		if w.conn, err = netfilter.Dial(); err == nil {
			w.table, err = NewTable(w.conn, cfg)
		}
	})
	w.node.Must(t, err)
	t.Cleanup(func() { _ = w.conn.Close() })
	_, err = w.table.Sync(context.Background(), w.builder)
	w.node.Must(t, err)
	return w
}

func (w *world) pick(v4, v6 string) string {
	if w.f == rules.IPv6 {
		return v6
	}
	return v4
}

func (w *world) addr(v4, v6 string) netip.Addr { return netip.MustParseAddr(w.pick(v4, v6)) }

func (w *world) eps(names ...string) (out []netip.AddrPort) {
	for _, n := range names {
		a := map[string]netip.Addr{"a": w.addr("10.42.0.11", "fd42::11"), "b": w.addr("10.42.0.12", "fd42::12"),
			"remote": w.addr("10.42.1.21", "fd42::1:21")}[n]
		out = append(out, netip.AddrPortFrom(a, 8080))
	}
	return out
}

// set puts Services in place of all that were there.
func (w *world) set(t *testing.T, svcs ...rules.ServicePort) {
	t.Helper()
	keep := map[string]bool{}
	for i, s := range svcs {
		s.Name = fmt.Sprintf("default/svc-%d", i)
		if s.Protocol == 0 {
			s.Protocol = rules.TCP
		}
		for _, e := range append(s.Cluster, s.Local...) {
			if e != w.eps("remote")[0] {
				s.Hairpin = append(s.Hairpin, e.Addr())
			}
		}
		keep[s.Name] = true
		w.builder.Set(s)
	}
	for n := range w.builder.Names() {
		if !keep[n] {
			w.builder.Delete(n)
		}
	}
	c := w.builder.Flush()
	w.node.Must(t, w.table.Apply(context.Background(), c))
	if c.Forget {
		_, err := w.table.Forget(context.Background(), w.builder.Stale)
		w.node.Must(t, err)
	}
	w.forgetUDP(t)
}

// forgetUDP removes the node's conntrack entries of UDP, as package proxy does: a source port that is used again would
// follow the entry of an earlier test.
func (w *world) forgetUDP(t *testing.T) {
	t.Helper()
	var err error
	w.node.Do(func() {
		filter := &netlink.ConntrackFilter{}
		family := netlink.InetFamily(unix.AF_INET)
		if w.f == rules.IPv6 {
			family = unix.AF_INET6
		}
		if err = filter.AddProtocol(unix.IPPROTO_UDP); err == nil {
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
		}
	})
	w.node.Must(t, err)
}

// expect asks several times: every answer must be wanted, and every wanted one must come. want may be
// "refused" or "silence".
func (w *world) expect(t *testing.T, from *host, network string, to netip.Addr, port uint16, want ...string) {
	t.Helper()
	seen := map[string]bool{}
	target := netip.AddrPortFrom(to, port).String()
	tries, within := 24, nettest.Patience
	if len(want) == 1 {
		tries = 2
	}
	if slices.Contains(want, "silence") {
		within = nettest.Silence
	}
	for range tries {
		got := from.Answer(t, network, target, within)
		seen[got] = true
		if !slices.Contains(want, got) {
			t.Errorf("%s %s %s: got %q, want %q", from.Name, network, target, got, want)
			return
		}
		if len(seen) == len(want) && len(want) > 1 {
			return
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%s %s %s: got only %v of %q", from.Name, network, target, seen, want)
	}
}

func TestPackets(t *testing.T) {
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t.Run(f.String(), func(t *testing.T) { testPackets(t, newWorld(t, f, nil)) })
	}
}

func testPackets(t *testing.T, w *world) {
	vip, lb, ext := w.addr("10.43.0.10", "fd43::10"), w.addr("198.51.100.1", "fd98::1"), w.addr("198.51.100.2",
		"fd98::2")
	nodeIP, loopback := w.addr("192.0.2.1", "fd02::1"), w.addr("127.0.0.1", "::1")
	ip := func(v4, v6 string) string { return w.pick(v4, v6) }
	podA, gw, node, client := ip("10.42.0.11", "fd42::11"), ip("10.42.0.1", "fd42::1"), nodeIP.String(), ip("192.0.2.2",
		"fd02::2")
	base := rules.ServicePort{ClusterIP: vip, Port: 80, Cluster: w.eps("a", "b")}
	udp := base
	udp.Protocol = rules.UDP

	t.Run("cluster ip", func(t *testing.T) {
		w.set(t, base, udp)
		for _, n := range []string{"tcp", "udp"} {
			w.expect(t, w.a, n, vip, 80, "a "+gw, "b "+podA) // to itself: hairpin
			w.expect(t, w.node, n, vip, 80, "a "+gw, "b "+gw)
			w.expect(t, w.client, n, vip, 80, "a "+gw, "b "+gw) // not a pod: masqueraded
		}
	})
	t.Run("remote endpoint", func(t *testing.T) {
		s := base
		s.Cluster = w.eps("remote")
		w.set(t, s)
		w.expect(t, w.a, "tcp", vip, 80, "remote "+podA)
		w.expect(t, w.node, "tcp", vip, 80, "remote "+node)
		w.expect(t, w.client, "tcp", vip, 80, "remote "+node)
	})
	t.Run("no endpoints", func(t *testing.T) {
		s, u := base, udp
		s.Cluster, u.Cluster = nil, nil
		s.NodePort, s.ExternalIPs = 30080, []netip.Addr{ext}
		w.set(t, s, u)
		for _, h := range []*host{w.a, w.node, w.client} {
			w.expect(t, h, "tcp", vip, 80, "refused")
			w.expect(t, h, "udp", vip, 80, "refused")
			w.expect(t, h, "tcp", ext, 80, "refused")
			w.expect(t, h, "tcp", nodeIP, 30080, "refused")
		}
	})
	t.Run("unused port", func(t *testing.T) {
		w.set(t, base)
		for _, h := range []*host{w.a, w.node, w.client} {
			w.expect(t, h, "tcp", vip, 81, "refused")
			w.expect(t, h, "udp", vip, 80, "refused")
		}
	})
	t.Run("node port", func(t *testing.T) {
		s, u := base, udp
		s.NodePort, u.NodePort = 30080, 30080
		w.set(t, s, u)
		for _, n := range []string{"tcp", "udp"} {
			w.expect(t, w.client, n, nodeIP, 30080, "a "+gw, "b "+gw)
			w.expect(t, w.node, n, nodeIP, 30080, "a "+gw, "b "+gw)
			w.expect(t, w.a, n, nodeIP, 30080, "a "+gw, "b "+gw)
		}
		w.expect(t, w.node, "tcp", loopback, 30080, "refused") // nobody listens
		w.expect(t, w.client, "tcp", vip, 30080, "refused")
	})
	t.Run("external addresses", func(t *testing.T) {
		s := base
		s.ExternalIPs, s.LoadBalancerIPs = []netip.Addr{ext}, []netip.Addr{lb}
		w.set(t, s)
		for _, to := range []netip.Addr{ext, lb} {
			w.expect(t, w.client, "tcp", to, 80, "a "+gw, "b "+gw)
			w.expect(t, w.a, "tcp", to, 80, "a "+gw, "b "+gw)
			w.expect(t, w.node, "tcp", to, 80, "a "+gw, "b "+gw)
		}
	})
	t.Run("source ranges", func(t *testing.T) {
		s := base
		s.LoadBalancerIPs = []netip.Addr{lb}
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix(ip("192.0.2.128/25", "fd02::8000/113")),
			netip.MustParsePrefix(ip("10.42.0.0/24", "fd42::/112"))}
		w.set(t, s)
		w.expect(t, w.client, "tcp", lb, 80, "silence")
		w.expect(t, w.a, "tcp", lb, 80, "a "+gw, "b "+gw)
		w.expect(t, w.client, "tcp", vip, 80, "a "+gw, "b "+gw)
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix(ip("192.0.2.0/24", "fd02::/64"))}
		w.set(t, s)
		w.expect(t, w.client, "tcp", lb, 80, "a "+gw, "b "+gw)
	})
	t.Run("external policy local", func(t *testing.T) {
		s := base
		s.Cluster, s.Local, s.ExternalLocal = w.eps("a", "remote"), w.eps("a"), true
		s.LoadBalancerIPs, s.NodePort = []netip.Addr{lb}, 30080
		w.set(t, s)
		// The client has no route to pods, yet the connection works: the answer is translated on its way.
		w.expect(t, w.client, "tcp", lb, 80, "a "+client)
		w.expect(t, w.client, "tcp", nodeIP, 30080, "a "+client)
		w.expect(t, w.b, "tcp", lb, 80, "a "+ip("10.42.0.12", "fd42::12"), "remote "+ip("10.42.0.12", "fd42::12"))
		w.expect(t, w.node, "tcp", lb, 80, "a "+gw, "remote "+node)
		w.expect(t, w.node, "tcp", nodeIP, 30080, "a "+gw, "remote "+node)
		s.Cluster, s.Local = w.eps("remote"), nil
		w.set(t, s)
		w.expect(t, w.client, "tcp", lb, 80, "silence")
		w.expect(t, w.client, "tcp", nodeIP, 30080, "silence")
		w.expect(t, w.b, "tcp", lb, 80, "remote "+ip("10.42.0.12", "fd42::12"))
	})
	t.Run("internal policy local", func(t *testing.T) {
		s := base
		s.Cluster, s.Local, s.InternalLocal = nil, w.eps("b"), true
		w.set(t, s)
		w.expect(t, w.a, "tcp", vip, 80, "b "+podA)
		s.Local, s.Anywhere = nil, true
		w.set(t, s)
		w.expect(t, w.a, "tcp", vip, 80, "silence")
		s.Anywhere = false
		w.set(t, s)
		w.expect(t, w.a, "tcp", vip, 80, "refused")
	})
	t.Run("affinity", func(t *testing.T) {
		s := base
		s.Affinity, s.NodePort = 10800, 30080
		w.set(t, s)
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(nodeIP, 30080)} {
			first, err := w.client.Ask("tcp", to.String(), nettest.Patience)
			if err != nil {
				t.Fatal(err)
			}
			for range 12 {
				w.expect(t, w.client, "tcp", to.Addr(), to.Port(), first)
			}
			// The endpoint goes: the client gets the other one, and stays with that one when it is back.
			other := map[string]string{"a": "b", "b": "a"}[first[:1]]
			less := s
			less.Cluster = w.eps(other)
			w.set(t, less)
			w.expect(t, w.client, "tcp", to.Addr(), to.Port(), other+" "+gw)
			w.set(t, s)
			for range 12 {
				w.expect(t, w.client, "tcp", to.Addr(), to.Port(), other+" "+gw)
			}
		}
		s.Affinity = 0
		w.set(t, s)
		w.expect(t, w.client, "tcp", vip, 80, "a "+gw, "b "+gw)
	})
	t.Run("address moves", func(t *testing.T) {
		w.set(t, base)
		other := rules.ServicePort{ClusterIP: w.addr("10.43.0.11", "fd43::11"), Port: 80, Cluster: w.eps("b")}
		one := base
		one.Cluster = w.eps("a")
		w.set(t, one, other)
		w.expect(t, w.client, "tcp", vip, 80, "a "+gw)
		one.ClusterIP, other.ClusterIP = other.ClusterIP, one.ClusterIP
		w.set(t, one, other)
		w.expect(t, w.client, "tcp", vip, 80, "b "+gw)
		w.expect(t, w.client, "tcp", one.ClusterIP, 80, "a "+gw)
	})
	t.Run("gone", func(t *testing.T) {
		w.set(t)
		// To an address that is no Service's any more, the node routes like to any other.
		if got, err := w.client.Ask("tcp", netip.AddrPortFrom(vip, 80).String(), nettest.Silence); err == nil {
			t.Errorf("answered %q", got)
		}
	})
}

func TestNodePortAddresses(t *testing.T) {
	w := newWorld(t, rules.IPv4, func(c *rules.Config) {
		c.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	})
	w.set(t, rules.ServicePort{ClusterIP: netip.MustParseAddr("10.43.0.10"), Port: 80, NodePort: 30080,
		Cluster: w.eps("b")})
	w.expect(t, w.client, "tcp", netip.MustParseAddr("192.0.2.1"), 30080, "refused") // nobody listens
	w.expect(t, w.a, "tcp", netip.MustParseAddr("10.42.0.1"), 30080, "b 10.42.0.1")
}
