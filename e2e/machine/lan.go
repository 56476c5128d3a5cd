package machine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// LANOptions say how a LAN is made.
type LANOptions struct {
	// Persist lets it outlive this process.
	Persist bool
}

// LAN is a switch in a network namespace of its own. All LANs use the same addresses, so machines on two
// of them cannot tell each other apart, nor reach each other.
type LAN struct {
	holder  *holder
	used    int
	persist bool
}

const (
	lanPrefix  = "10.77.0.0/24"
	lanGateway = "10.77.0.1"
	bridge     = "lan0"
)

// NewLAN makes a LAN. The caller must Close it after the machines on it are destroyed.
func NewLAN(o LANOptions) (*LAN, error) {
	h, _, err := hold(o.Persist, []string{"unshare", "-n", "--", "sh", "-c", "echo up; exec sleep 2147483647 >/dev/null"}, nil)
	if err != nil {
		return nil, fmt.Errorf("make LAN: %w", err)
	}
	l := &LAN{holder: h, persist: o.Persist}
	err = l.inside(func(nl *netlink.Handle) error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		if err := nl.LinkAdd(br); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(nl.LinkSetUp(lo), addAddress(nl, br, lanGateway), nl.LinkSetUp(br))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make LAN: %w", err), l.Close())
	}
	return l, nil
}

// Gateway is the LAN's own address, at which Listen may serve.
func (l *LAN) Gateway() string { return lanGateway }

// Do runs f on a thread in the LAN's network namespace: sockets that it opens are there.
func (l *LAN) Do(f func() error) error { return enter(l.holder.pid, []space{netSpace}, f) }

// Close removes the LAN.
func (l *LAN) Close() error {
	if l.holder == nil {
		return nil
	}
	return l.holder.kill()
}

func (l *LAN) nextAddress() string {
	l.used++
	a := netip.MustParseAddr(lanGateway)
	for range l.used {
		a = a.Next()
	}
	return a.String()
}

func (l *LAN) inside(f func(*netlink.Handle) error) error { return withNetlink(l.holder.pid, f) }

// plug joins a machine to the LAN as eth0, with the LAN's gateway as default route.
func (l *LAN) plug(m *Machine) error {
	target, err := netns.GetFromPid(m.PID)
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // a descriptor
	port := "p" + fmt.Sprint(m.PID)
	err = l.inside(func(nl *netlink.Handle) error {
		br, err := nl.LinkByName(bridge)
		if err != nil {
			return err
		}
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: br.Attrs().Index}, PeerName: "eth0", PeerNamespace: netlink.NsFd(target),
			PeerHardwareAddr: hardware(m.IP)}
		if err := nl.LinkAdd(v); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
		return nl.LinkSetUp(v)
	})
	if err != nil {
		return err
	}
	return withNetlink(m.PID, func(nl *netlink.Handle) error {
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		eth, err := nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := errors.Join(nl.LinkSetUp(lo), addAddress(nl, eth, m.IP), nl.LinkSetUp(eth)); err != nil {
			return err
		}
		return nl.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(lanGateway)})
	})
}

// hardware is the address of a machine's network card, which it keeps over reboots.
func hardware(ip string) net.HardwareAddr {
	a := netip.MustParseAddr(ip).As4()
	return append(net.HardwareAddr{2, 0}, a[:]...)
}

func addAddress(nl *netlink.Handle, link netlink.Link, addr string) error {
	bits := netip.MustParsePrefix(lanPrefix).Bits()
	a, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", addr, bits))
	if err != nil {
		return err
	}
	if err := nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", addr, err)
	}
	return nil
}

// withNetlink calls f with a netlink socket in the network namespace of a process.
func withNetlink(pid int, f func(*netlink.Handle) error) error {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close() //nolint:errcheck // a descriptor
	nl, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer nl.Close()
	return f(nl)
}
