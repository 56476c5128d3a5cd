package machine

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// LANOptions say how a LAN is made.
type LANOptions struct {
	// Persist lets it outlive this process.
	Persist bool
	// Delay is how long a frame that a machine sends is on its way, and Loss which part of them never arrives,
	// as 0.01. Such a LAN cannot outlive this process.
	Delay time.Duration
	Loss  float64
}

// LAN is a switch in a network namespace of its own. All LANs use the same addresses, so machines on two
// of them cannot tell each other apart, nor reach each other.
type LAN struct {
	holder  *holder
	used    int
	persist bool
	delay   time.Duration
	loss    float64

	mu    sync.Mutex
	wires map[*Machine]*wire // where they are long or lossy
}

const (
	lanPrefix  = "10.77.0.0/24"
	lanGateway = "10.77.0.1"
	bridge     = "lan0"
)

// NewLAN makes a LAN. The caller must Close it after the machines on it are destroyed.
func NewLAN(o LANOptions) (*LAN, error) {
	slow := o.Delay > 0 || o.Loss > 0
	if slow && o.Persist {
		return nil, errors.New("make LAN: one with a delay or losses lives in this process")
	}
	h, _, err := hold(o.Persist, []string{"unshare", "-n", "--", "sh", "-c",
		"echo up; exec sleep 2147483647 >/dev/null"}, nil)
	if err != nil {
		return nil, fmt.Errorf("make LAN: %w", err)
	}
	l := &LAN{holder: h, persist: o.Persist, delay: o.Delay, loss: o.Loss}
	if slow {
		l.wires = map[*Machine]*wire{}
	}
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
	var errs []error
	for m := range l.wires {
		errs = append(errs, l.unplug(m))
	}
	return errors.Join(append(errs, l.holder.kill())...)
}

// Cut takes a machine off the LAN, which does not see it: what is sent is lost.
func (l *LAN) Cut(m *Machine) error {
	return l.onPort(m, func(nl *netlink.Handle, port, _ netlink.Link) error { return nl.LinkSetNoMaster(port) })
}

// Mend undoes Cut.
func (l *LAN) Mend(m *Machine) error {
	return l.onPort(m, func(nl *netlink.Handle, port, br netlink.Link) error { return nl.LinkSetMaster(port, br) })
}

func (l *LAN) onPort(m *Machine, f func(nl *netlink.Handle, port, br netlink.Link) error) error {
	return l.inside(func(nl *netlink.Handle) error {
		br, err := nl.LinkByName(bridge)
		if err != nil {
			return err
		}
		port, err := nl.LinkByName(m.port)
		if err != nil {
			return fmt.Errorf("find the port of machine %s: %w", m.Name, err)
		}
		return f(nl, port, br)
	})
}

// Renumber gives a machine another address in place of the one that it has, as when it is carried into another network.
func (l *LAN) Renumber(m *Machine) error {
	old := m.IP
	m.IP = l.nextAddress()
	err := withNetlink(m.PID, func(nl *netlink.Handle) error {
		eth, err := nl.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", old, netip.MustParsePrefix(lanPrefix).Bits()))
		if err != nil {
			return err
		}
		// The other way round, the new one would be a second address, which goes with the first.
		if err := errors.Join(nl.AddrDel(eth, a), addAddress(nl, eth, m.IP)); err != nil {
			return err
		}
		return nl.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(lanGateway)})
	})
	if err != nil {
		return fmt.Errorf("give machine %s the address %s: %w", m.Name, m.IP, err)
	}
	return nil
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
	m.port = "p" + fmt.Sprint(m.PID)
	if l.wires == nil {
		err = l.inside(func(nl *netlink.Handle) error {
			v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: m.port}, PeerName: "eth0",
				PeerNamespace: netlink.NsFd(target)}
			if err := nl.LinkAdd(v); err != nil {
				return fmt.Errorf("add veth: %w", err)
			}
			return nil
		})
	} else {
		err = l.plugWire(m)
	}
	if err != nil {
		return err
	}
	err = l.onPort(m, func(nl *netlink.Handle, port, br netlink.Link) error {
		return errors.Join(nl.LinkSetMaster(port, br), nl.LinkSetUp(port))
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
		if err := errors.Join(nl.LinkSetUp(lo), nl.LinkSetHardwareAddr(eth, hardware(m.IP)), addAddress(nl, eth, m.IP),
			nl.LinkSetUp(eth)); err != nil {
			return err
		}
		return nl.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(lanGateway)})
	})
}

// plugWire puts a new wire in place of the one that the machine had before it was off.
func (l *LAN) plugWire(m *Machine) error {
	if err := l.unplug(m); err != nil {
		return err
	}
	w, err := newWire(l.holder.pid, m.PID, m.port, "eth0", l.delay, l.loss)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wires[m] = w
	return nil
}

func (l *LAN) unplug(m *Machine) error {
	l.mu.Lock()
	w := l.wires[m]
	delete(l.wires, m)
	l.mu.Unlock()
	if w == nil {
		return nil
	}
	return w.close()
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
