package host

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoAddress means that the machine has no default route to tell the node's address from.
var ErrNoAddress = errors.New("no address found for this node: there is no default route to tell it from; set node-ip")

// Addresses are the node's: those the user set, or the address of the default route's interface, and of
// the same family order as the cluster's ranges when ipv6 is asked for as well.
func Addresses(asked []string, ipv4, ipv6 bool) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range asked {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("node-ip: %w", err)
		}
		out = append(out, a)
	}
	if len(out) > 0 {
		return out, nil
	}
	for _, f := range []struct {
		want   bool
		family int
	}{{ipv4, unix.AF_INET}, {ipv6, unix.AF_INET6}} {
		if !f.want {
			continue
		}
		a, err := defaultRouteAddress(f.family)
		if err != nil {
			return nil, err
		}
		if a.IsValid() {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, ErrNoAddress
	}
	return out, nil
}

// defaultRouteAddress is the source address of the default route with the least metric.
func defaultRouteAddress(family int) (netip.Addr, error) {
	routes, err := netlinksafe.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	var best *netlink.Route
	for i, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 || !r.Dst.IP.IsUnspecified() {
				continue
			}
		}
		if best == nil || r.Priority < best.Priority {
			best = &routes[i]
		}
	}
	if best == nil {
		return netip.Addr{}, nil
	}
	if a, ok := netip.AddrFromSlice(best.Src); ok && !a.Unmap().IsUnspecified() {
		return a.Unmap(), nil
	}
	index := best.LinkIndex
	if index == 0 && len(best.MultiPath) > 0 {
		index = best.MultiPath[0].LinkIndex
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the default route's interface: %w", err)
	}
	addrs, err := netlinksafe.AddrList(link, family)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) == 0 {
			return ip.Unmap(), nil
		}
	}
	return netip.Addr{}, nil
}
