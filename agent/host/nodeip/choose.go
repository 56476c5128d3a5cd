package nodeip

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// ErrNone means that the machine has no usable address, and had none before.
var ErrNone = errors.New(
	"this machine has no address for the node yet: plug in the cable, wait for DHCP, or set node-ip; an address is used as soon as there is one")

// Families selects address families.
type Families struct{ V4, V6 bool }

// FamiliesOf returns the families of address ranges such as cluster-cidr.
func FamiliesOf(ranges []netip.Prefix) Families {
	var f Families
	for _, p := range ranges {
		f.V4, f.V6 = f.V4 || p.Addr().Is4(), f.V6 || p.Addr().Is6()
	}
	return f
}

func (f Families) has(a netip.Addr) bool { return a.Is4() && f.V4 || a.Is6() && f.V6 }

// Choice holds the addresses of a node, at most one per family, IPv4 first unless the user has set another order.
type Choice struct {
	IPs []netip.Addr
	// Missing are the addresses in IPs that the machine does not have at the moment.
	Missing []netip.Addr

	stored []address // to be stored on disk
}

// Texts returns the addresses as strings.
func (c Choice) Texts() []string {
	out := make([]string, len(c.IPs))
	for i, ip := range c.IPs {
		out[i] = ip.String()
	}
	return out
}

// Of returns the addresses of the given families.
func (c Choice) Of(f Families) []netip.Addr {
	var out []netip.Addr
	for _, ip := range c.IPs {
		if f.has(ip) {
			out = append(out, ip)
		}
	}
	return out
}

func (c Choice) equal(d Choice) bool {
	return slices.Equal(c.IPs, d.IPs) && slices.Equal(c.Missing, d.Missing)
}

// address is a chosen address as it is stored on disk.
type address struct {
	IP netip.Addr `json:"ip"`
	// Routed means that it was the source address of the default route: it is not replaced by another such address.
	Routed bool `json:"routed"`
	// Interface has the address. It is stored only where node-ip names it.
	Interface string `json:"interface,omitempty"`
	// virtual means that the interface is one of containers, virtual machines or tunnels, and has no default route.
	virtual bool
}

type file struct {
	Addresses []address `json:"addresses"`
}

// load reads the stored addresses. The error wraps fs.ErrNotExist if there are none.
func load(path string) ([]address, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's stored addresses: %w", err)
	}
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("read the node's stored addresses in %s: %w", path, err)
	}
	return f.Addresses, nil
}

// save stores the addresses if they have changed, to spare the flash memory.
func save(path string, list []address) error {
	raw, err := json.Marshal(file{list})
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(raw) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	return atomicfile.Write(path, raw, 0o600)
}

// choose chooses the user's addresses, or else from those that the machine, or the user's interfaces, have and those
// chosen before. An address comes before the interfaces in its family.
func choose(asked []Asked, want Families, stored, have []address) Choice {
	var c Choice
	at := func(ip netip.Addr) int {
		return slices.IndexFunc(have, func(a address) bool { return a.IP == ip })
	}
	take := func(a address) {
		c.IPs = append(c.IPs, a.IP)
		if at(a.IP) < 0 {
			c.Missing = append(c.Missing, a.IP)
		}
	}
	names := interfaces(asked)
	for _, ip := range addresses(asked) {
		take(address{IP: ip})
		want.V4, want.V6 = want.V4 && !ip.Is4(), want.V6 && !ip.Is6()
	}
	switch {
	case len(names) > 0:
		stored, have = on(stored, names), on(have, names)
	case len(asked) > 0:
		return c
	default:
		stored = on(stored, []string{""})
		have = slices.DeleteFunc(slices.Clone(have), func(a address) bool { return a.virtual })
	}
	for _, f := range []Families{{V4: want.V4}, {V6: want.V6}} {
		of := func(list []address, routed bool) (address, bool) {
			i := slices.IndexFunc(list, func(a address) bool { return f.has(a.IP) && (a.Routed || !routed) })
			if i < 0 {
				return address{}, false
			}
			return list[i], true
		}
		old, had := of(stored, false)
		best, any := of(have, true)
		if !any {
			best, any = of(have, false)
		}
		switch {
		case had && at(old.IP) >= 0 && (old.Routed || !best.Routed):
			best = old
		case any:
		case had:
			best = old
		default:
			continue
		}
		take(best)
		if len(names) == 0 {
			best.Interface = ""
		}
		c.stored = append(c.stored, best)
	}
	return c
}

// Find returns the addresses that a new node on this machine would get now, at most one per family.
func Find() ([]netip.Addr, error) {
	have, err := machine()
	if err != nil {
		return nil, err
	}
	return choose(nil, Families{V4: true, V6: true}, nil, have).IPs, nil
}

// machine returns the usable addresses of this machine; those of default routes come first in their family, by metric,
// and have Routed set. Those of virtual interfaces are among them.
func machine() ([]address, error) {
	links, err := netlinksafe.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]netlink.Link{}
	for _, l := range links {
		names[l.Attrs().Index] = l
	}
	var out []address
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routed, err := defaultAddresses(family)
		if err != nil {
			return nil, err
		}
		all, err := netlinksafe.AddrList(nil, family)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		first := make([]address, len(routed))
		for i, ip := range routed {
			first[i] = address{IP: ip, Routed: true}
		}
		var rest []address
		for _, a := range all {
			ip, ok := netip.AddrFromSlice(a.IP)
			link := names[a.LinkIndex]
			if ip = ip.Unmap(); !ok || link == nil || !usable(ip, a.Flags) {
				continue
			}
			if i := slices.Index(routed, ip); i >= 0 {
				first[i].Interface = link.Attrs().Name
			} else if link.Attrs().Flags&net.FlagUp != 0 {
				rest = append(rest, address{IP: ip, Interface: link.Attrs().Name, virtual: virtual(link)})
			}
		}
		out = slices.Concat(out, first, rest)
	}
	return out, nil
}

// usable reports whether other machines can reach the node at an address.
func usable(ip netip.Addr, flags int) bool {
	return ip.IsGlobalUnicast() && flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY|unix.IFA_F_DADFAILED) == 0
}

// virtual reports whether an interface belongs to containers, virtual machines or tunnels, behind which there are no
// other nodes. Such an interface counts only if the default route uses it.
func virtual(l netlink.Link) bool {
	switch l.Type() {
	case "wireguard", "tun", "tuntap", "vxlan", "ipvs", "dummy":
		return true
	}
	name := l.Attrs().Name
	for _, p := range []string{"lo", "cni", "flannel", "docker", "br-", "virbr", "lxcbr", "lxdbr", "podman", "kube-",
		"cali", "cilium", "weave"} {
		if name == p || strings.HasPrefix(name, p) && p != "lo" {
			return true
		}
	}
	return strings.HasPrefix(name, "veth")
}

// defaultAddresses returns the source addresses of the default routes, by metric.
func defaultAddresses(family int) ([]netip.Addr, error) {
	routes, err := netlinksafe.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN},
		netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones != 0 || !r.Dst.IP.IsUnspecified()
	})
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	var out []netip.Addr
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Src); ok && !a.Unmap().IsUnspecified() {
			out = append(out, a.Unmap())
			continue
		}
		index := r.LinkIndex
		if index == 0 && len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		link, err := netlink.LinkByIndex(index)
		if err != nil {
			continue // the link was removed meanwhile
		}
		addrs, err := netlinksafe.AddrList(link, family)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Scope == unix.RT_SCOPE_UNIVERSE &&
				usable(ip.Unmap(), a.Flags) {
				out = append(out, ip.Unmap())
				break
			}
		}
	}
	return slices.Compact(out), nil
}
