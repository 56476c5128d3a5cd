package podsource

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

const port = 9999

// lab is a node with two pods, and what arrives at it.
type lab struct {
	*testing.T
	node, evil, friend *nettest.Host
	arrived            chan netip.Addr
	dev                string // of the evil pod; empty is eth0
}

func newLab(t *testing.T) *lab {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	l := &lab{T: t, node: nettest.New(t, "node"), evil: nettest.New(t, "evil"), friend: nettest.New(t, "friend"),
		arrived: make(chan netip.Addr, 1000)}
	l.node.Bridge(t, "cni0", "10.42.0.1/24", "fd42::1/112")
	for i, p := range []*nettest.Host{l.evil, l.friend} {
		p.Plug(t, "eth0", l.node, "cni0", fmt.Sprintf("10.42.0.%d/24", 11+i), fmt.Sprintf("fd42::%d/112", 11+i))
	}
	l.node.Do(func() {
		for _, network := range []string{"udp4", "udp6"} {
			nettest.ServeUDP(t, network, fmt.Sprintf(":%d", port), func(_ string, from netip.Addr) string {
				l.arrived <- from
				return ""
			})
		}
	})
	return l
}

// mac is the hardware address of a host's interface.
func (l *lab) mac(h *nettest.Host, dev string) (out net.HardwareAddr) {
	h.Do(func() {
		i, err := net.InterfaceByName(dev)
		if err != nil {
			l.Fatal(err)
		}
		out = i.HardwareAddr
	})
	return out
}

// pod is how the CNI plugin would tell of a host.
func (l *lab) pod(h *nettest.Host, n int) Pod {
	return Pod{Interface: "v" + h.Name + "eth0", MAC: l.mac(h, "eth0"),
		Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.42.0.%d", n)),
			netip.MustParseAddr(fmt.Sprintf("fd42::%d", n))}}
}

// frame puts what the evil pod writes onto its wire, as a raw socket lets it.
func (l *lab) frame(from net.HardwareAddr, kind uint16, payload []byte) {
	l.frameTo(l.mac(l.node, "cni0"), from, kind, payload)
}

func (l *lab) frameTo(to, from net.HardwareAddr, kind uint16, payload []byte) {
	var err error
	l.evil.Do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		var i *net.Interface
		if i, err = net.InterfaceByName(cmp.Or(l.dev, "eth0")); err != nil {
			return
		}
		err = unix.Sendto(fd, slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, kind), payload), 0,
			&unix.SockaddrLinklayer{Ifindex: i.Index, Halen: 6})
	})
	if err != nil {
		l.Fatal(err)
	}
}

func sum(parts ...[]byte) uint16 {
	s := uint32(0)
	b := slices.Concat(parts...)
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// ip is a packet from src to dst.
func ip(src, dst netip.Addr, proto byte, body []byte) []byte {
	if src.Is4() {
		h := slices.Concat([]byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, proto, 0, 0}, src.AsSlice(),
			dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], sum(h))
		return append(h, body...)
	}
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(body)), proto, 255}, src.AsSlice(), dst.AsSlice(), body)
}

// pseudo is what the checksums of IPv6 begin with.
func pseudo(src, dst netip.Addr, proto byte, n int) []byte {
	return slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, 0, byte(n), 0, 0, 0, proto})
}

func udp(src, dst netip.Addr) []byte {
	b := []byte{0x30, 0x39, port >> 8, port & 0xff, 0, 10, 0, 0, 'h', 'i'}
	if src.Is6() {
		binary.BigEndian.PutUint16(b[6:], sum(pseudo(src, dst, unix.IPPROTO_UDP, len(b)), b))
	}
	return ip(src, dst, unix.IPPROTO_UDP, b)
}

// send has the evil pod send to the node with a source, and its own address after that: what has come until then is
// returned.
func (l *lab) send(from net.HardwareAddr, src string) (out []string) {
	s, own, dst, kind := netip.MustParseAddr(src), netip.MustParseAddr("10.42.0.11"), netip.MustParseAddr("10.42.0.1"), uint16(unix.ETH_P_IP)
	if s.Is6() {
		own, dst, kind = netip.MustParseAddr("fd42::11"), netip.MustParseAddr("fd42::1"), unix.ETH_P_IPV6
	}
	if s != own || from.String() != l.mac(l.evil, "eth0").String() {
		l.frame(from, kind, udp(s, dst))
	}
	l.frame(l.mac(l.evil, "eth0"), kind, udp(own, dst))
	for {
		select {
		case a := <-l.arrived:
			if a == own {
				return out
			}
			out = append(out, a.String())
		case <-time.After(nettest.Patience):
			l.Fatalf("the pod's own address %s does not arrive", own)
		}
	}
}

// neighbor is what the node takes for the hardware address of an address.
func (l *lab) neighbor(a string) (out string) {
	l.node.Do(func() {
		cni, err := netlink.LinkByName("cni0")
		if err != nil {
			l.Fatal(err)
		}
		list, err := netlink.NeighList(cni.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			l.Fatal(err)
		}
		for _, n := range list {
			if n.IP.String() == a {
				out = n.HardwareAddr.String()
			}
		}
	})
	return out
}

// TestForgedSources: without the check a pod sends as anybody, with it as itself alone, whatever rp_filter says.
func TestForgedSources(t *testing.T) {
	l := newLab(t)
	l.node.Sysctl(t, "net/ipv4/neigh/cni0/locktime", "0") // otherwise ARP may change an entry once a second
	forged := []string{"192.0.2.1", "10.42.1.9", "10.42.0.250", "10.42.0.12", "fd42::12", "fd99::1"}
	own, friends := l.mac(l.evil, "eth0"), l.mac(l.friend, "eth0")
	claim := func() { // the friend's addresses are at the evil pod's
		a4, a6, node6 := netip.MustParseAddr("10.42.0.12"), netip.MustParseAddr("fd42::12"), netip.MustParseAddr("fd42::1")
		l.frame(own, unix.ETH_P_ARP, slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, own, a4.AsSlice(),
			l.mac(l.node, "cni0"), []byte{10, 42, 0, 1}))
		for _, src := range []netip.Addr{netip.MustParseAddr("fd42::11"), netip.MustParseAddr("fe80::11")} {
			na := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, a6.AsSlice(), []byte{2, 1}, own)
			binary.BigEndian.PutUint16(na[2:], sum(pseudo(src, node6, unix.IPPROTO_ICMPV6, len(na)), na))
			l.frame(own, unix.ETH_P_IPV6, ip(src, node6, unix.IPPROTO_ICMPV6, na))
		}
		l.send(own, "10.42.0.11")
		l.send(own, "fd42::11")
	}
	neighbors := func() string { return l.neighbor("10.42.0.12") + " " + l.neighbor("fd42::12") }
	ping := func() {
		for _, to := range []string{"10.42.0.12:1", "[fd42::12]:1"} {
			_, _ = l.node.Ask("tcp", to, nettest.Patience) // refused: the neighbour is known from then on
		}
	}
	ping()
	if got := neighbors(); got != friends.String()+" "+friends.String() {
		t.Fatal(got)
	}

	// Before: the attack works.
	for _, s := range forged {
		if got := l.send(own, s); !slices.Equal(got, []string{s}) {
			t.Errorf("without the check %s: %v", s, got)
		}
	}
	claim()
	if got := neighbors(); got != own.String()+" "+own.String() {
		t.Errorf("without the check the friend's neighbours are %s", got)
	}
	// The friend's own packets put the neighbours right again.
	_, _ = l.friend.Ask("tcp", "10.42.0.1:1", nettest.Patience)
	l.forgetNeighbors()
	ping()

	l.check(l.pod(l.evil, 11), l.pod(l.friend, 12))
	for _, filter := range []string{"0", "1"} {
		l.node.Sysctl(t, "net/ipv4/conf/all/rp_filter", filter)
		l.node.Sysctl(t, "net/ipv4/conf/cni0/rp_filter", filter)
		for _, s := range forged {
			if got := l.send(own, s); got != nil {
				t.Errorf("rp_filter %s, %s: %v", filter, s, got)
			}
		}
		for _, s := range []string{"10.42.0.11", "fd42::11"} {
			if got := l.send(friends, s); got != nil {
				t.Errorf("rp_filter %s, with the friend's hardware address: %v", filter, got)
			}
		}
		claim()
		if got := neighbors(); got != friends.String()+" "+friends.String() {
			t.Errorf("rp_filter %s: the friend's neighbours are %s", filter, got)
		}
	}
	// A pod that starts anew finds its neighbours, and its neighbours it.
	l.forgetNeighbors()
	for _, to := range []string{"10.42.0.1", "10.42.0.12", "[fd42::1]", "[fd42::12]"} {
		if got := l.evil.Answer(t, "tcp", to+":1", nettest.Patience); !strings.HasPrefix(got, "refused") {
			t.Errorf("to %s: %s", to, got)
		}
	}
}

func (l *lab) check(pods ...Pod) {
	l.Helper()
	l.node.Do(func() {
		for _, p := range pods {
			if err := Check(l.Context(), p); err != nil {
				l.Error(err)
			}
		}
	})
}

func (l *lab) forgetNeighbors() {
	for _, h := range []*nettest.Host{l.node, l.evil, l.friend} {
		h.Do(func() {
			if out, err := exec.Command("ip", "neigh", "flush", "all").CombinedOutput(); err != nil {
				l.Errorf("%v: %s", err, out)
			}
		})
	}
}

// devices are those that have a chain.
func devices(conn *netfilter.Conn) (out []string) {
	list, err := chains(table(conn))
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range list {
		out = append(out, c.device)
	}
	return out
}

// TestRestore: the pods that the CNI library knows of get their chains back, those of other nodes and what is gone
// none, and a pod that nobody knows is not cut off.
func TestRestore(t *testing.T) {
	l := newLab(t)
	own := l.mac(l.evil, "eth0")
	results, state := t.TempDir(), "/run/x/cni"
	conn := l.node.Netfilter(t)
	keep := func(name, state string, p Pod) {
		raw, err := json.Marshal(map[string]any{"kind": "cniCacheV1", "ifName": "eth0",
			"config": fmt.Appendf(nil, `{"dataDir":%q}`, state), "result": map[string]any{
				"cniVersion": "1.0.0", "interfaces": []any{map[string]any{"name": "cni0"},
					map[string]any{"name": p.Interface},
					map[string]any{"name": "eth0", "mac": p.MAC.String(), "sandbox": "/run/netns/x"}},
				"ips": []any{map[string]any{"interface": 2, "address": p.Addrs[0].String() + "/24"},
					map[string]any{"interface": 2, "address": p.Addrs[1].String() + "/112"}},
			}})
		if err == nil {
			err = os.WriteFile(filepath.Join(results, name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	restore := func() (put bool, have []string, err error) {
		l.node.Do(func() {
			put, err = Restore(t.Context(), conn, results, state)
			have = devices(conn)
		})
		return put, have, err
	}
	if put, have, err := restore(); put || err != nil || have != nil {
		t.Fatal(put, err, have)
	}
	keep("umiak-1-eth0", state, l.pod(l.evil, 11))
	keep("umiak-2-eth0", "/run/y/cni", l.pod(l.friend, 12))
	gone := l.pod(l.friend, 12)
	gone.Interface = "vgone"
	keep("umiak-3-eth0", state, gone)
	if put, have, err := restore(); !put || err != nil || !slices.Equal(have, []string{"vevileth0"}) {
		t.Fatal(put, err, have)
	}
	if put, _, err := restore(); put || err != nil {
		t.Error(put, err)
	}
	if got := l.send(own, "10.42.0.12"); got != nil {
		t.Error(got)
	}
	if got := l.friend.Answer(t, "tcp", "10.42.0.1:1", nettest.Patience); !strings.HasPrefix(got, "refused") {
		t.Error(got)
	}
	// An older release has left the chain of one pod, with its own rules and name.
	l.node.Do(func() {
		nettest.NFT(t, "delete table netdev "+Table)
		nettest.NFT(t, "add table netdev "+Table)
		nettest.NFT(t, "add chain netdev "+Table+
			" vevileth0 { type filter hook ingress device vevileth0 priority 0 ; }")
	})
	if put, have, err := restore(); !put || err != nil || !slices.Equal(have, []string{"vevileth0"}) {
		t.Fatal(put, err, have)
	}
	if got := l.send(own, "10.42.0.12"); got != nil {
		t.Error(got)
	}
	// Somebody empties the chain, and lets all frames pass.
	for _, cmd := range []string{"flush table netdev " + Table, "delete table netdev " + Table} {
		l.node.Do(func() { nettest.NFT(t, cmd) })
		if put, have, err := restore(); !put || err != nil || !slices.Equal(have, []string{"vevileth0"}) {
			t.Fatal(cmd, put, err, have)
		}
		if got := l.send(own, "10.42.0.12"); got != nil {
			t.Error(cmd, got)
		}
	}
	// Somebody removes all tables; one result is broken.
	if err := os.WriteFile(filepath.Join(results, "umiak-4-eth0"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.node.Do(func() { nettest.NFT(t, "flush ruleset") })
	if put, have, err := restore(); !put || err == nil || !slices.Equal(have, []string{"vevileth0"}) {
		t.Fatal(put, err, have)
	}
	// The pod goes, and with it, at the next one at the latest, its chain.
	l.node.Do(func() {
		if link, err := netlink.LinkByName("vevileth0"); err != nil || netlink.LinkDel(link) != nil {
			t.Error("the pod does not go", err)
		}
	})
	l.check(l.pod(l.friend, 12))
	if _, have, _ := restore(); !slices.Equal(have, []string{"vfriendeth0"}) {
		t.Error(have)
	}
	l.node.Do(func() {
		if err := Off(t.Context()); err != nil {
			t.Error(err)
		}
		if have := devices(conn); have != nil {
			t.Error(have)
		}
	})
}
