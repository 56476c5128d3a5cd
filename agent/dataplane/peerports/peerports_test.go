package peerports

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

const (
	kubelet   = 10250
	innerPort = 9999
	innerNode = "10.42.0.1"
)

// lab is a node with an overlay in both families, and other machines of its LAN. The pod's address is one that a router
// leads to the node, as the overlay does.
type lab struct {
	*testing.T
	node, peer, stranger *nettest.Host
	macs                 map[bool]net.HardwareAddr // of the node's overlay, by whether it is IPv4's
	arrived              chan string
	conn                 *netfilter.Conn // of the node
}

func newLab(t *testing.T) *lab {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	l := &lab{T: t, node: nettest.New(t, "node"), peer: nettest.New(t, "peer"), stranger: nettest.New(t, "stranger"),
		macs: map[bool]net.HardwareAddr{}, arrived: make(chan string, 1000)}
	l.conn = l.node.Netfilter(t)
	lan := nettest.New(t, "lan")
	lan.Bridge(t, "br")
	for i, h := range []*nettest.Host{l.node, l.peer, l.stranger} {
		h.Plug(t, "eth0", lan, "br", fmt.Sprintf("192.168.7.%d/24", i+1), fmt.Sprintf("fd07::%d/64", i+1))
	}
	l.peer.Address(t, "eth0", "192.168.7.22/24", "fd07::22/64") // to which it moves
	l.node.Do(func() {
		for _, v4 := range []bool{true, false} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = map[bool]string{true: "flannel.1", false: "flannel-v6.1"}[v4]
			x := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: vxlanPort, Learning: false,
				SrcAddr: addrOf(0, v4).AsSlice()}
			if err := netlink.LinkAdd(x); err != nil {
				t.Fatal(err)
			}
			i, err := net.InterfaceByName(attrs.Name)
			if err != nil {
				t.Fatal(err)
			}
			l.macs[v4] = i.HardwareAddr
		}
	})
	l.node.Address(t, "flannel.1", innerNode+"/24")
	l.node.Address(t, "flannel-v6.1")
	l.node.Do(func() {
		nettest.ServeTCP(t, fmt.Sprintf(":%d", kubelet), nettest.Echo)
		nettest.ServeUDP(t, "udp4", fmt.Sprintf(":%d", innerPort), func(text string, _ netip.Addr) string {
			l.arrived <- text
			return ""
		})
	})
	return l
}

// apply writes the rules on the node, as netfilter/reconcile does.
func (l *lab) apply(r Rules) {
	l.Helper()
	if r.Empty() {
		if err := l.conn.Remove(l.Context(), Table); err != nil {
			l.Fatal(err)
		}
		return
	}
	nettest.Apply(l, l.conn, r.Table())
}

// addrOf is a machine's address: 0 the node, 1 the peer, 2 the stranger, 21 where the peer moves.
func addrOf(machine int, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{192, 168, 7, byte(machine + 1)})
	}
	return netip.MustParseAddr(fmt.Sprintf("fd07::%d", machine+1))
}

// packet is what a pod's datagram looks like in the overlay: RFC 7348, Ethernet, IPv4, UDP.
func packet(to net.HardwareAddr, text string) []byte {
	ip := make([]byte, 20)
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	copy(ip[12:], []byte{10, 42, 9, 9})
	copy(ip[16:], net.ParseIP(innerNode).To4())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := make([]byte, 8)
	binary.BigEndian.PutUint16(udp, 1234)
	binary.BigEndian.PutUint16(udp[2:], innerPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(text)))
	eth := slices.Concat(to, []byte{2, 0, 0, 0, 0, 9}, []byte{8, 0})
	return slices.Concat([]byte{8, 0, 0, 0, 0, 0, 1, 0}, eth, ip, udp, []byte(text))
}

// send sends a packet of the overlay to the node from one of a machine's addresses.
func (l *lab) send(from *nettest.Host, source netip.Addr, text string) {
	l.Helper()
	v4 := source.Is4()
	var err error
	from.Do(func() {
		var c *net.UDPConn
		if c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrOf(0, v4), vxlanPort))); err != nil {
			return
		}
		defer c.Close()
		_, err = c.Write(packet(l.macs[v4], text))
	})
	if err != nil {
		l.Fatal(err)
	}
}

// arrives sends until a packet arrives, and returns what else has arrived until then.
func (l *lab) arrives(from *nettest.Host, source netip.Addr) (others []string) {
	l.Helper()
	text := "from " + source.String()
	for range 200 {
		l.send(from, source, text)
		t := time.NewTimer(nettest.Patience / 200)
		for waiting := true; waiting; {
			select {
			case got := <-l.arrived:
				if got == text {
					t.Stop()
					return others
				}
				others = append(others, got)
			case <-t.C:
				waiting = false
			}
		}
	}
	l.Fatalf("nothing arrives from %s", source)
	return nil
}

// TestVXLAN: who is no node sends nothing into the overlay, a node does, also after it got another address.
func TestVXLAN(t *testing.T) {
	l := newLab(t)
	vxlan := Rules{VXLAN: true}
	apply := func(peers ...netip.Addr) {
		t.Helper()
		vxlan.Peers = slices.Concat(peers, []netip.Addr{addrOf(0, true), addrOf(0, false)})
		l.apply(vxlan)
	}
	for _, v4 := range []bool{true, false} {
		peer, moved, stranger := addrOf(1, v4), addrOf(21, v4), addrOf(2, v4)
		l.apply(Rules{})
		l.arrives(l.stranger, stranger) // the attack, where nothing is closed
		apply(addrOf(1, true), addrOf(1, false))
		l.drain()
		for range 20 {
			l.send(l.stranger, stranger, "forged")
		}
		if others := l.arrives(l.peer, peer); slices.Contains(others, "forged") {
			t.Errorf("IPv4 %v: a stranger's packets arrive: %q", v4, others)
		}
		apply(addrOf(21, true), addrOf(21, false)) // the peer's Node has another address
		l.arrives(l.peer, moved)
		l.drain()
		for range 20 {
			l.send(l.peer, peer, "from where it was")
		}
		if others := l.arrives(l.peer, moved); slices.Contains(others, "from where it was") {
			t.Errorf("IPv4 %v: its former address is still let in: %q", v4, others)
		}
		l.node.Do(func() {
			if n, err := vxlan.Counts(); err != nil || n.VXLAN == 0 || n.Kubelet != 0 {
				t.Errorf("counted %+v, %v", n, err)
			}
		})
	}
}

// drain forgets what has arrived.
func (l *lab) drain() {
	for {
		select {
		case <-l.arrived:
		default:
			return
		}
	}
}

// TestKubelet: nodes, pods, named ranges and the machine itself reach the kubelet's port, others do not, and
// connections that are there go on.
func TestKubelet(t *testing.T) {
	l := newLab(t)
	l.peer.Address(t, "lo", "10.42.1.5/32", "fd42::1:5/128") // a pod there
	l.node.Route(t, "10.42.1.0/24", "192.168.7.2")
	l.node.Route(t, "fd42::1:0/112", "fd07::2")
	rules := Rules{Kubelet: kubelet, VXLAN: true, Peers: []netip.Addr{addrOf(0, true),
		addrOf(0, false), addrOf(1, true), addrOf(1, false)},
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}}
	apply := func() {
		t.Helper()
		l.apply(rules)
	}
	var open net.Conn // a stranger's from before
	l.stranger.Do(func() {
		var err error
		if open, err = net.Dial("tcp", netip.AddrPortFrom(addrOf(0, true), kubelet).String()); err != nil {
			t.Fatal(err)
		}
	})
	defer open.Close()
	apply()
	_ = open.SetDeadline(time.Now().Add(nettest.Patience))
	if _, err := open.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := open.Read(make([]byte, 1)); err != nil {
		t.Errorf("a connection that was there: %v", err)
	}
	ask := func(what string, from *nettest.Host, source, to string, want bool) {
		t.Helper()
		var err error
		from.Do(func() {
			d := net.Dialer{Timeout: nettest.Patience}
			if source != "" {
				d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(source)}
			}
			var c net.Conn
			if c, err = d.Dial("tcp", net.JoinHostPort(to, fmt.Sprint(kubelet))); err == nil {
				_ = c.Close()
			}
		})
		if (err == nil) != want {
			t.Errorf("%s at %s: %v", what, to, err)
		}
	}
	for _, v4 := range []bool{true, false} {
		node, pod := addrOf(0, v4).String(), map[bool]string{true: "10.42.1.5", false: "fd42::1:5"}[v4]
		ask("a peer", l.peer, addrOf(1, v4).String(), node, true)
		ask("a pod", l.peer, pod, node, true)
		ask("the node itself", l.node, "", node, true)
		ask("the tunnel", l.node, "", map[bool]string{true: "127.0.0.1", false: "::1"}[v4], true)
		ask("a stranger", l.stranger, "", node, false)
		ask("an address that a peer has and no Node", l.peer, addrOf(21, v4).String(), node, false)
	}
	l.node.Do(func() {
		if n, err := rules.Counts(); err != nil || n.Kubelet < 2 || n.VXLAN != 0 {
			t.Errorf("counted %+v, %v", n, err)
		}
	})
	rules.Ranges = append(rules.Ranges, netip.MustParsePrefix("192.168.7.3/32"), netip.MustParsePrefix("fd07::/64"))
	apply()
	ask("a stranger that the settings name", l.stranger, "", addrOf(0, true).String(), true)
	ask("a stranger that the settings name", l.stranger, "", addrOf(0, false).String(), true)
	rules.Ranges, rules.Peers = nil, nil
	apply()
	ask("the tunnel of a node that knows nobody", l.node, "", "127.0.0.1", true)
	for i := range 3000 { // more than one message holds
		rules.Peers = append(rules.Peers, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}))
	}
	rules.Peers = append(rules.Peers, addrOf(1, true))
	apply()
	ask("a peer of many", l.peer, addrOf(1, true).String(), addrOf(0, true).String(), true)
	rules = Rules{}
	apply()
	l.node.Do(func() {
		if out := nettest.NFT(t, "list ruleset"); strings.Contains(out, Table) {
			t.Errorf("nothing is closed, and there is\n%s", out)
		}
	})
}
