package serviceroute

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host/netlinkwatch"
)

// protocol marks our routes, so that they are found again. The node's DNS has a mark of its own.
const protocol = 0x76

// Routes maintains the routes to some address ranges.
type Routes struct {
	ranges []netip.Prefix
	up     func()
	log    *slog.Logger
}

// New returns routes to the ranges; Run adds them. up is called when the loopback interface is up again, which has lost
// its routes and its IPv6 addresses, after the routes are restored; it must not block and may be nil.
func New(ranges []netip.Prefix, up func(), log *slog.Logger) *Routes {
	return &Routes{ranges: ranges, up: up, log: log.With("component", "routes")}
}

// Run adds the routes and restores them whenever another program removes them, until ctx ends. They stay when it
// returns: pods run on.
func (r *Routes) Run(ctx context.Context, ready func()) error {
	return netlinkwatch.Follow(ctx, netlinkwatch.Kinds{Routes: true, Links: true}, func(m netlinkwatch.Messages) error {
		return r.follow(ctx, m, ready)
	})
}

// follow returns nil when the kernel's messages have broken off, as when there were too many, or ctx has ended.
func (r *Routes) follow(ctx context.Context, m netlinkwatch.Messages, ready func()) error {
	if _, err := r.set(); err != nil {
		return err
	}
	ready()
	was := true
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.Lost:
			return nil
		case c, ok := <-m.Links:
			if !ok {
				return nil
			}
			if c.Attrs().Flags&net.FlagLoopback == 0 {
				continue
			}
			now := c.Attrs().Flags&net.FlagUp != 0
			if now && !was {
				if err := r.restore(); err != nil {
					return err
				}
			}
			was = now
		case c, ok := <-m.Routes:
			if !ok {
				return nil
			}
			if c.Type != unix.RTM_DELROUTE || c.Protocol != protocol {
				continue
			}
			added, err := r.set()
			if err != nil {
				return err
			}
			if added > 0 {
				r.log.Warn("the route to Services was removed, it is restored", "ranges", r.ranges)
			}
		}
	}
}

// restore adds again what the loopback interface has lost while it was down. The kernel sends no notification of the
// IPv4 routes that go with it.
func (r *Routes) restore() error {
	if _, err := r.set(); err != nil {
		return err
	}
	r.log.Warn("the loopback interface was down, the route to Services is restored", "ranges", r.ranges)
	if r.up != nil {
		r.up()
	}
	return nil
}

// set adds what is missing, takes away what an earlier run had for other ranges, and returns how many it added.
func (r *Routes) set() (added int, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, fmt.Errorf("find loopback interface: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			return 0, fmt.Errorf("bring loopback interface up: %w", err)
		}
	}
	have, err := drop(lo, r.ranges)
	if err != nil {
		return 0, err
	}
	for _, p := range r.ranges {
		if slices.Contains(have, p) {
			continue
		}
		if err := netlink.RouteReplace(route(lo, p)); err != nil {
			return added, fmt.Errorf("add route to %s: %w", p, err)
		}
		added++
	}
	return added, nil
}

func route(lo netlink.Link, p netip.Prefix) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Protocol: protocol, Scope: netlink.SCOPE_LINK,
		Dst: &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
	}
	if p.Addr().Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	return r
}

// drop removes our routes but those to keep, and returns which of these are there.
func drop(lo netlink.Link, keep []netip.Prefix) (have []netip.Prefix, err error) {
	routes, err := netlinksafe.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{LinkIndex: lo.Attrs().Index, Protocol: protocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil {
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			if p := netip.PrefixFrom(a.Unmap(), ones); ok && slices.Contains(keep, p) {
				have = append(have, p)
				continue
			}
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
			return nil, fmt.Errorf("remove route to %s: %w", r.Dst, err)
		}
	}
	return have, nil
}

// Cleanup removes the routes of any run of this package. It may be called twice, but not while Run runs.
func Cleanup(context.Context) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	_, err = drop(lo, nil)
	return err
}
