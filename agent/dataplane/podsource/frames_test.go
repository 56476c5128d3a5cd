package podsource

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// tagged puts VLAN tags, the outermost first, before a payload. A tag is its type and its VLAN.
func tagged(kind uint16, payload []byte, tags ...[2]uint16) (uint16, []byte) {
	for _, t := range slices.Backward(tags) {
		payload = slices.Concat(binary.BigEndian.AppendUint16(nil, t[1]), binary.BigEndian.AppendUint16(nil, kind),
			payload)
		kind = t[0]
	}
	return kind, payload
}

// TestTaggedFrames: a VLAN tag hides from no check what is behind it: frames with one end at the pod's interface.
func TestTaggedFrames(t *testing.T) {
	l := newLab(t)
	l.node.Sysctl(t, "net/ipv4/neigh/cni0/locktime", "0")
	own, friends, node := l.mac(l.evil, "eth0"), l.mac(l.friend, "eth0"), l.mac(l.node, "cni0")
	zero, ad := [2]uint16{unix.ETH_P_8021Q, 0}, [2]uint16{unix.ETH_P_8021AD, 0}
	stacks := [][][2]uint16{{zero}, {zero, zero}, {zero, zero, zero}, {ad}, {ad, zero}, {ad, ad},
		{{unix.ETH_P_8021Q, 7}}, {{unix.ETH_P_8021Q, 0xe000}}}
	friendHeard := l.hears(l.friend)
	arrivals := func() (out []string) {
		for i, tags := range stacks {
			add := func(what string, arrived bool) {
				if arrived {
					out = append(out, fmt.Sprintf("%d %s", i, what))
				}
			}
			for _, src := range []string{"192.0.2.1", "10.42.0.12", "fd42::12"} {
				s, dst, kind, me := netip.MustParseAddr(src), netip.MustParseAddr("10.42.0.1"), uint16(unix.ETH_P_IP), "10.42.0.11"
				if s.Is6() {
					dst, kind, me = netip.MustParseAddr("fd42::1"), unix.ETH_P_IPV6, "fd42::11"
				}
				k, b := tagged(kind, udp(s, dst), tags...)
				l.frameTo(node, own, k, b)
				add(src, l.send(own, me) != nil)
			}
			k, b := tagged(unix.ETH_P_ARP, slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2},
				own, []byte{10, 42, 0, 12}, node, []byte{10, 42, 0, 1}), tags...)
			l.frameTo(node, own, k, b)
			l.send(own, "10.42.0.11")
			if l.neighbor("10.42.0.12") == own.String() {
				add("ARP", true)
				l.forgetNeighbors()
				_, _ = l.node.Ask("tcp", "10.42.0.12:1", nettest.Patience)
			}
			// Between pods: bridge-nf looks into no tagged frame, so that no policy sees it.
			me, friend := netip.MustParseAddr("10.42.0.11"), netip.MustParseAddr("10.42.0.12")
			k, b = tagged(unix.ETH_P_IP, udp(me, friend), tags...)
			l.frameTo(friends, own, k, b)
			last := udp(me, friend) // IPv4 without a checksum
			last[len(last)-1] = '!'
			l.frameTo(friends, own, unix.ETH_P_IP, last)
			add("to a pod", friendHeard())
		}
		return out
	}
	_, _ = l.node.Ask("tcp", "10.42.0.12:1", nettest.Patience)
	before := arrivals()
	t.Log("without the check:", before)
	for _, s := range []string{"0 192.0.2.1", "0 fd42::12", "0 ARP", "0 to a pod", "1 10.42.0.12"} {
		if !slices.Contains(before, s) {
			t.Errorf("without the check %q does not arrive", s)
		}
	}
	l.check(l.pod(l.evil, 11), l.pod(l.friend, 12))
	if after := arrivals(); after != nil {
		t.Error("with the check:", after)
	}
	// Tags that the kernel carries beside the frame, as it does when a pod has an interface for a VLAN.
	var err error
	l.evil.Do(func() {
		var parent netlink.Link
		if parent, err = netlink.LinkByName("eth0"); err != nil {
			return
		}
		v := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "vlan0", ParentIndex: parent.Attrs().Index, TxQLen: -1},
			VlanId: 0, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
		err = errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v))
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Log("not tried: the kernel has no interfaces for VLANs")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	l.dev = "vlan0"
	l.frame(own, unix.ETH_P_IP, udp(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.42.0.1")))
	l.dev = ""
	if got := l.send(own, "10.42.0.11"); got != nil {
		t.Error("by an interface of a VLAN:", got)
	}
}

// hears reports whether anything has arrived at a host's UDP port before a datagram that ends in "!".
func (l *lab) hears(h *nettest.Host) func() bool {
	var u net.PacketConn
	var err error
	h.Do(func() { u, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port)) })
	h.Must(l, err)
	l.Cleanup(func() { _ = u.Close() })
	return func() (before bool) {
		l.Helper()
		_ = u.SetReadDeadline(time.Now().Add(nettest.Patience))
		for b := make([]byte, 100); ; before = true {
			n, _, err := u.ReadFrom(b)
			if err != nil {
				l.Fatal("the pod's own packet does not arrive at the friend: ", err)
			}
			if n > 0 && b[n-1] == '!' {
				return before
			}
		}
	}
}

// icmp is an ICMPv6 message with its checksum.
func icmp(src, dst netip.Addr, body ...[]byte) []byte {
	m := slices.Concat(body...)
	binary.BigEndian.PutUint16(m[2:], sum(pseudo(src, dst, unix.IPPROTO_ICMPV6, len(m)), m))
	return m
}

// headers of IPv6 that lead to next.
func hopByHop(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} } // PadN

func fragmentOf(next byte, offset uint16, more bool, b []byte) []byte {
	f := offset
	if more {
		f |= 1
	}
	return slices.Concat([]byte{next, 0}, binary.BigEndian.AppendUint16(nil, f), []byte{0, 0, 0, 7}, b)
}

// TestNeighborDiscovery: a pod does not speak for others or for a router, however it wraps that.
func TestNeighborDiscovery(t *testing.T) {
	l := newLab(t)
	// Kernels since 3.12 drop neighbour discovery in fragments by themselves, if nobody has told them otherwise.
	l.node.Sysctl(t, "net/ipv6/conf/cni0/suppress_frag_ndisc", "0")
	own, friends := l.mac(l.evil, "eth0"), l.mac(l.friend, "eth0")
	a := netip.MustParseAddr
	me, node, friend := a("fd42::11"), a("fd42::1"), a("fd42::12")
	na := icmp(me, node, []byte{neighborAdvertisement, 0, 0, 0, 0x20, 0, 0, 0}, friend.AsSlice(), []byte{2, 1}, own)
	const v6, dest = unix.IPPROTO_ICMPV6, unix.IPPROTO_DSTOPTS
	claims := []struct {
		name    string
		packets [][]byte
		works   bool // without the check
	}{
		{"plain", [][]byte{ip(me, node, v6, na)}, true},
		{"behind hop-by-hop options", [][]byte{ip(me, node, 0, append(hopByHop(v6), na...))}, true},
		{"behind destination options", [][]byte{ip(me, node, dest, append(hopByHop(v6), na...))}, true},
		{"behind both", [][]byte{ip(me, node, 0, slices.Concat(hopByHop(dest), hopByHop(v6), na))}, true},
		{"one fragment", [][]byte{ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(v6, 0, false, na))}, true},
		{"two fragments", [][]byte{ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(v6, 0, true, na[:8])),
			ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(v6, 8, false, na[8:]))}, true},
		{"two fragments, options in the first alone",
			[][]byte{ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(dest, 0, true, hopByHop(dest))),
				// newer kernels drop it (RFC 8200)
				ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(dest, 8, false, append(hopByHop(v6), na...)))}, false},
	}
	taken := func(packets [][]byte) bool {
		l.forgetNeighbors()
		_, _ = l.node.Ask("tcp", "[fd42::12]:1", nettest.Patience)
		if got := l.neighbor("fd42::12"); got != friends.String() {
			t.Fatalf("the friend is at %s", got)
		}
		for _, p := range packets {
			l.frame(own, unix.ETH_P_IPV6, p)
		}
		l.send(own, "fd42::11")
		return l.neighbor("fd42::12") == own.String()
	}
	for _, c := range claims {
		if got := taken(c.packets); c.works && !got {
			t.Errorf("%s: without the check the neighbour stays", c.name)
		}
	}

	// A router's messages: another pod takes its default route from an advertisement, and a better way from a redirect.
	fake, all := a("fe80::11"), a("ff02::1")
	routers := func(lifetime byte) bool {
		ra := icmp(fake, all, []byte{routerAdvertisement, 0, 0, 0, 64, 8, 0, lifetime, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1},
			own)
		l.frameTo(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, own, unix.ETH_P_IPV6, ip(fake, all, v6, ra))
		l.frameTo(friends, own, unix.ETH_P_IPV6, ip(fake, all, 0, append(hopByHop(v6), ra...)))
		l.frameTo(friends, own, unix.ETH_P_IPV6, ip(fake, all, unix.IPPROTO_FRAGMENT, fragmentOf(v6, 0, false, ra)))
		// What was sent before has been seen when the friend answers.
		l.evil.Answer(t, "tcp", "[fd42::12]:1", nettest.Patience)
		return l.routeBy(l.friend, fake)
	}
	l.friend.Sysctl(t, "net/ipv6/conf/eth0/accept_ra", "1")
	if !routers(60) {
		t.Error("without the check the friend takes no default route")
	}
	routers(0)
	if l.routeBy(l.friend, fake) {
		t.Fatal("the default route does not go")
	}

	dad := func() bool { // the friend gives up an address for which another asks at the same time
		return l.heardSolicitation(icmp(netip.IPv6Unspecified(), a("ff02::1:ff00:13"),
			[]byte{neighborSolicitation, 0, 0, 0, 0, 0, 0, 0}, a("fd42::13").AsSlice()))
	}
	if !dad() {
		t.Error("without the check the friend hears no solicitation")
	}

	l.check(l.pod(l.evil, 11), l.pod(l.friend, 12))
	for _, c := range claims {
		if taken(c.packets) {
			t.Errorf("%s: the friend's neighbour is the evil pod", c.name)
		}
	}
	if routers(60) {
		t.Error("the friend has a default route by the evil pod")
	}
	if dad() {
		t.Error("a solicitation without source for another's address passes")
	}
	l.wrapped(t)
}

// routeBy reports whether a host has a route by a gateway.
func (l *lab) routeBy(h *nettest.Host, gw netip.Addr) (has bool) {
	h.Do(func() {
		list, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		if err != nil {
			l.Error(err)
		}
		has = slices.ContainsFunc(list, func(r netlink.Route) bool { return r.Gw.Equal(gw.AsSlice()) })
	})
	return has
}

// heardSolicitation reports whether a message that asks for fd42::13 arrives at the friend's interface.
func (l *lab) heardSolicitation(m []byte) (heard bool) {
	to := netip.MustParseAddr("ff02::1:ff00:13")
	own := l.mac(l.evil, "eth0")
	var fd int
	var err error
	l.friend.Do(func() {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, unix.ETH_P_IPV6<<8&0xff00|unix.ETH_P_IPV6>>8)
	})
	l.friend.Must(l, err)
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO,
		&unix.Timeval{Sec: int64(nettest.Patience / time.Second)}); err != nil {
		l.Fatal(err)
	}
	l.frameTo(net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 0x13}, own, unix.ETH_P_IPV6,
		ip(netip.IPv6Unspecified(), to, unix.IPPROTO_ICMPV6, m))
	me, friend := netip.MustParseAddr("fd42::11"), netip.MustParseAddr("fd42::12")
	last := udp(me, friend)
	l.frameTo(l.mac(l.friend, "eth0"), own, unix.ETH_P_IPV6, last)
	for b := make([]byte, 2000); ; {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			l.Fatal("the pod's own packet does not arrive at the friend: ", err)
		}
		if n >= 14 && slices.Equal(b[14:n], last) {
			return heard
		}
		heard = heard || strings.Contains(string(b[:n]), string(m))
	}
}

// wrapped: what pods may send passes behind extension headers and in fragments.
func (l *lab) wrapped(t *testing.T) {
	me, node := netip.MustParseAddr("fd42::11"), netip.MustParseAddr("fd42::1")
	datagram := udp(me, node)[40:]
	for name, packets := range map[string][][]byte{
		"hop-by-hop options":  {ip(me, node, 0, append(hopByHop(unix.IPPROTO_UDP), datagram...))},
		"destination options": {ip(me, node, unix.IPPROTO_DSTOPTS, append(hopByHop(unix.IPPROTO_UDP), datagram...))},
		"fragments": {ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(unix.IPPROTO_UDP, 0, true, datagram[:8])),
			ip(me, node, unix.IPPROTO_FRAGMENT, fragmentOf(unix.IPPROTO_UDP, 8, false, datagram[8:]))},
	} {
		for _, p := range packets {
			l.frame(l.mac(l.evil, "eth0"), unix.ETH_P_IPV6, p)
		}
		select {
		case from := <-l.arrived:
			if from != me {
				t.Errorf("%s: from %s", name, from)
			}
		case <-time.After(nettest.Patience):
			t.Errorf("%s: does not arrive", name)
		}
	}
	// A ping that is larger than a packet.
	var c net.Conn
	var err error
	l.evil.Do(func() { c, err = net.Dial("ip6:ipv6-icmp", "fd42::1") })
	l.evil.Must(t, err)
	defer c.Close()
	echo := make([]byte, 4000)
	echo[0] = 128
	_ = c.SetDeadline(time.Now().Add(nettest.Patience))
	if _, err := c.Write(echo); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 5000); ; {
		n, err := c.Read(b)
		if err != nil {
			t.Fatal("a large ping is not answered: ", err)
		}
		if b[0] == 129 && n == len(echo) {
			return
		}
	}
}
