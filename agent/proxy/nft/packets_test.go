package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/netfilter"
	"github.com/umiak-io/umiak/agent/proxy/rules"
)

// host is a network namespace with a thread in it.
type host struct {
	name string
	work chan func()
	fd   netns.NsHandle
	nl   *netlink.Handle
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	h := &host{name: name, work: make(chan func())}
	up := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread, and the namespace with it, ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.fd, err = netns.Get()
		}
		up <- err
		for f := range h.work {
			f()
		}
	}()
	if err := <-up; err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	nl, err := netlink.NewHandleAt(h.fd)
	if err != nil {
		t.Fatal(err)
	}
	h.nl = nl
	t.Cleanup(func() { nl.Close(); close(h.work); _ = h.fd.Close() })
	lo, _ := nl.LinkByName("lo")
	h.must(t, nl.LinkSetUp(lo))
	h.sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	h.sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	return h
}

func (h *host) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", h.name, err)
	}
}

// do runs f in the namespace.
func (h *host) do(f func()) {
	done := make(chan struct{})
	h.work <- func() { defer close(done); f() }
	<-done
}

func (h *host) sysctl(t *testing.T, name, value string) {
	t.Helper()
	var err error
	h.do(func() { err = os.WriteFile("/proc/sys/"+name, []byte(value), 0) }) // the opener's namespace counts
	h.must(t, err)
}

// plug connects h with a bridge of another namespace and gives it addresses.
func (h *host) plug(t *testing.T, dev string, to *host, bridge string, addrs ...string) {
	t.Helper()
	tmp := fmt.Sprintf("v%s%s", h.name, dev)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tmp
	h.must(t, to.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + tmp}))
	peer, err := to.nl.LinkByName("p" + tmp)
	h.must(t, err)
	h.must(t, to.nl.LinkSetNsFd(peer, int(h.fd)))
	port, _ := to.nl.LinkByName(tmp)
	br, err := to.nl.LinkByName(bridge)
	h.must(t, err)
	h.must(t, to.nl.LinkSetMaster(port, br))
	h.must(t, to.nl.LinkSetHairpin(port, true))
	h.must(t, to.nl.LinkSetUp(port))
	peer, err = h.nl.LinkByName("p" + tmp)
	h.must(t, err)
	h.must(t, h.nl.LinkSetName(peer, dev))
	h.address(t, dev, addrs...)
}

func (h *host) address(t *testing.T, dev string, addrs ...string) {
	t.Helper()
	l, err := h.nl.LinkByName(dev)
	h.must(t, err)
	h.must(t, h.nl.LinkSetUp(l))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		h.must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		h.must(t, h.nl.AddrAdd(l, addr))
	}
}

func (h *host) bridge(t *testing.T, name string, addrs ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	h.must(t, h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	h.address(t, name, addrs...)
}

func (h *host) route(t *testing.T, dst, via string) {
	t.Helper()
	_, n, err := net.ParseCIDR(dst)
	h.must(t, err)
	h.must(t, h.nl.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)}))
}

// serve answers each connection and datagram with "name source".
func (h *host) serve(t *testing.T, port int) {
	t.Helper()
	h.do(func() {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		h.must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(c, "%s %s", h.name, source(c.RemoteAddr()))
				_ = c.Close()
			}
		}()
		// A socket for each family: with one for both, the answer's source is not always the address asked.
		for _, network := range []string{"udp4", "udp6"} {
			u, err := net.ListenPacket(network, fmt.Sprintf(":%d", port))
			h.must(t, err)
			t.Cleanup(func() { _ = u.Close() })
			go func() {
				b := make([]byte, 100)
				for {
					_, from, err := u.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = u.WriteTo([]byte(h.name+" "+source(from)), from)
				}
			}()
		}
	})
}

func source(a net.Addr) string {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().String()
}

// ask connects and returns what was answered.
func (h *host) ask(network, to string) (answer string, err error) {
	h.do(func() {
		d := net.Dialer{Timeout: 700 * time.Millisecond}
		var c net.Conn
		if c, err = d.Dial(network, to); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(700 * time.Millisecond))
		if network == "udp" {
			_, _ = c.Write([]byte("?"))
			b := make([]byte, 100)
			var n int
			n, err = c.Read(b)
			answer = string(b[:n])
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

// world is a node with two pods, another node with a pod, and a client that is neither.
type world struct {
	f                               rules.Family
	wire, node, a, b, remote, extra *host
	client                          *host
	builder                         *rules.Builder
	table                           *Table
	conn                            *netfilter.Conn
}

func newWorld(t *testing.T, f rules.Family, mod func(*rules.Config)) *world {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{f: f}
	w.wire, w.node, w.a, w.b = newHost(t, "wire"), newHost(t, "node"), newHost(t, "a"), newHost(t, "b")
	w.remote, w.client = newHost(t, "remote"), newHost(t, "client")
	w.wire.bridge(t, "br0")
	w.node.bridge(t, "cni0", "10.42.0.1/24", "fd42::1/112")
	w.node.plug(t, "eth0", w.wire, "br0", "192.0.2.1/24", "fd02::1/64")
	w.client.plug(t, "eth0", w.wire, "br0", "192.0.2.2/24", "fd02::2/64")
	w.remote.plug(t, "eth0", w.wire, "br0", "192.0.2.3/24", "fd02::3/64")
	w.remote.address(t, "lo", "10.42.1.21/32", "fd42::1:21/128")
	for i, p := range []*host{w.a, w.b} {
		p.plug(t, "eth0", w.node, "cni0", fmt.Sprintf("10.42.0.%d/24", 11+i), fmt.Sprintf("fd42::%d/112", 11+i))
		p.route(t, "0.0.0.0/0", "10.42.0.1")
		p.route(t, "::/0", "fd42::1")
	}
	for _, h := range []*host{w.node, w.remote} {
		h.sysctl(t, "net/ipv4/ip_forward", "1")
		h.sysctl(t, "net/ipv6/conf/all/forwarding", "1")
		h.sysctl(t, "net/ipv4/icmp_ratelimit", "0") // more refusals than in a life
		h.sysctl(t, "net/ipv6/icmp/ratelimit", "0")
	}
	w.node.route(t, "10.42.1.0/24", "192.0.2.3")
	w.node.route(t, "fd42::1:0/112", "fd02::3")
	w.node.route(t, "0.0.0.0/0", "192.0.2.2")
	w.node.route(t, "::/0", "fd02::2")
	w.remote.route(t, "10.42.0.0/24", "192.0.2.1")
	w.remote.route(t, "fd42::/112", "fd02::1")
	// The client sends Services' addresses to the node; to pods it has no route.
	for _, r := range [][2]string{{"10.43.0.0/16", "192.0.2.1"}, {"fd43::/64", "fd02::1"}, {"198.51.100.0/24", "192.0.2.1"}, {"fd98::/64", "fd02::1"}} {
		w.client.route(t, r[0], r[1])
	}
	for _, p := range []*host{w.a, w.b, w.remote} {
		p.serve(t, 8080)
	}
	cfg := rules.Config{Family: f, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(w.pick("10.42.0.0/16", "fd42::/64"))}}
	if mod != nil {
		mod(&cfg)
	}
	w.builder = rules.NewBuilder(cfg)
	var err error
	w.node.do(func() {
		if w.conn, err = netfilter.Dial(); err == nil {
			w.table, err = NewTable(w.conn, cfg)
		}
	})
	w.node.must(t, err)
	t.Cleanup(func() { _ = w.conn.Close() })
	_, err = w.table.Sync(context.Background(), w.builder)
	w.node.must(t, err)
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
		a := map[string]netip.Addr{"a": w.addr("10.42.0.11", "fd42::11"), "b": w.addr("10.42.0.12", "fd42::12"), "remote": w.addr("10.42.1.21", "fd42::1:21")}[n]
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
	w.node.must(t, w.table.Apply(context.Background(), c))
	if c.Forget {
		_, err := w.table.Forget(context.Background(), w.builder.Stale)
		w.node.must(t, err)
	}
}

// expect asks several times: every answer must be wanted, and every wanted one must come. want may be
// "refused" or "silence".
func (w *world) expect(t *testing.T, from *host, network string, to netip.Addr, port uint16, want ...string) {
	t.Helper()
	seen := map[string]bool{}
	target := netip.AddrPortFrom(to, port).String()
	tries := 24
	if len(want) == 1 {
		tries = 2
	}
	for range tries {
		begun := time.Now()
		got, err := from.ask(network, target)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			if got = "refused"; time.Since(begun) > 400*time.Millisecond {
				got = "refused late"
			}
		case err != nil && (strings.Contains(err.Error(), "timeout") || errors.Is(err, os.ErrDeadlineExceeded)):
			got = "silence"
		case err != nil:
			got = err.Error()
		}
		seen[got] = true
		ok := false
		for _, x := range want {
			ok = ok || x == got
		}
		if !ok {
			t.Errorf("%s %s %s: got %q, want %q", from.name, network, target, got, want)
			return
		}
		if len(seen) == len(want) && len(want) > 1 {
			return
		}
	}
	if len(seen) != len(want) {
		t.Errorf("%s %s %s: got only %v of %q", from.name, network, target, seen, want)
	}
}

func TestPackets(t *testing.T) {
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t.Run(f.String(), func(t *testing.T) { testPackets(t, newWorld(t, f, nil)) })
	}
}

func testPackets(t *testing.T, w *world) {
	vip, lb, ext := w.addr("10.43.0.10", "fd43::10"), w.addr("198.51.100.1", "fd98::1"), w.addr("198.51.100.2", "fd98::2")
	nodeIP, loopback := w.addr("192.0.2.1", "fd02::1"), w.addr("127.0.0.1", "::1")
	ip := func(v4, v6 string) string { return w.pick(v4, v6) }
	podA, gw, node, client := ip("10.42.0.11", "fd42::11"), ip("10.42.0.1", "fd42::1"), nodeIP.String(), ip("192.0.2.2", "fd02::2")
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
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix(ip("192.0.2.128/25", "fd02::8000/113")), netip.MustParsePrefix(ip("10.42.0.0/24", "fd42::/112"))}
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
			first, err := w.client.ask("tcp", to.String())
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
		if got, err := w.client.ask("tcp", netip.AddrPortFrom(vip, 80).String()); err == nil {
			t.Errorf("answered %q", got)
		}
	})
}

func TestNodePortAddresses(t *testing.T) {
	w := newWorld(t, rules.IPv4, func(c *rules.Config) {
		c.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}
	})
	w.set(t, rules.ServicePort{ClusterIP: netip.MustParseAddr("10.43.0.10"), Port: 80, NodePort: 30080, Cluster: w.eps("b")})
	w.expect(t, w.client, "tcp", netip.MustParseAddr("192.0.2.1"), 30080, "refused") // nobody listens
	w.expect(t, w.a, "tcp", netip.MustParseAddr("10.42.0.1"), 30080, "b 10.42.0.1")
}
