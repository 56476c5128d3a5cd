package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Where CoreDNS is reached at port 53, the same on every node: a packet never leaves the node for it.
var (
	AddrV4 = netip.MustParseAddr(wellknown.DNSv4)
	AddrV6 = netip.MustParseAddr(wellknown.DNSv6)
)

const (
	// Table is the nftables table that leads the cluster DNS address here.
	Table = "umiak-dns"
	// Before umiak-proxy's NAT chains and everybody else's: NAT is decided once a connection, by the
	// first chain that does it. Service rules then never see the DNS Service, which has no endpoints and
	// would be rejected. After that the packet is for a local address, so no forward rule sees it either.
	natPriority = -150
	// routeProtocol marks our routes, so that they are found again.
	routeProtocol = 0x75
	// firstPort is the first of ports at which CoreDNS may listen on those addresses. Port 53 there would keep the
	// host's own DNS server from 0.0.0.0:53, or be kept from us by it. The ports are privileged, so that no user of
	// this host can take one while umiak is down and answer pods; IANA has them reserved, so nothing else wants them.
	firstPort, ports = 225, 16
)

// freePort is a port at which CoreDNS can listen: the first, unless a program of this host holds it at all addresses.
func freePort(bind []netip.Addr) (uint16, error) {
	var errs []error
	for port := uint16(firstPort); port < firstPort+ports; port++ {
		err := listens(bind, port)
		if err == nil {
			return port, nil
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("no free port from %d to %d: %w", firstPort, firstPort+ports-1, errs[0])
}

// listens tries to listen, TCP and UDP.
func listens(bind []netip.Addr, port uint16) error {
	for _, a := range bind {
		to := netip.AddrPortFrom(a, port)
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		if err := errors.Join(err, l.Close()); err != nil {
			return err
		}
		if err := u.Close(); err != nil {
			return err
		}
	}
	return nil
}

// forgetFlows drops what the kernel remembers of UDP queries that were led to another port than this one: a client
// that asks again from the same port would be led there for as long as it goes on asking.
func forgetFlows(bind []netip.Addr, port uint16) {
	for _, a := range bind {
		family := netlink.InetFamily(unix.AF_INET)
		if a.Is6() {
			family = unix.AF_INET6
		}
		// otherwise they end with their timeout
		_, _ = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, staleFlow{a, port})
	}
}

type staleFlow struct {
	server netip.Addr
	port   uint16
}

// MatchConntrackFlow is netlink's interface.
func (s staleFlow) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	src, ok := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && f.Forward.Protocol == unix.IPPROTO_UDP && src.Unmap() == s.server && f.Reverse.SrcPort != s.port
}

// listenAddrs are the addresses to serve the given cluster addresses on, one a family.
func listenAddrs(clusterDNS []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range []netip.Addr{AddrV4, AddrV6} {
		if slices.ContainsFunc(clusterDNS, func(c netip.Addr) bool { return c.Is4() == a.Is4() }) {
			out = append(out, a)
		}
	}
	return out
}

// setupAddresses puts addresses and routes on the node.
func setupAddresses(clusterDNS []netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring loopback interface up: %w", err)
		}
	}
	for _, a := range listenAddrs(clusterDNS) {
		if err := netlink.AddrReplace(lo, loAddr(a)); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	// A cluster address of an earlier run must not stay routed.
	if err := dropRoutes(lo, clusterDNS); err != nil {
		return err
	}
	for _, a := range clusterDNS {
		// Without a route the host could not even begin to send to the Service address where there is no
		// default route; DNAT comes after routing for what the host itself sends.
		if err := netlink.RouteReplace(loRoute(lo, a)); err != nil {
			return fmt.Errorf("add route to %s: %w", a, err)
		}
	}
	return nil
}

func loAddr(a netip.Addr) *netlink.Addr {
	n := &netlink.Addr{IPNet: hostNet(a), Scope: int(netlink.SCOPE_HOST)} // never chosen as a source for other hosts
	if a.Is6() {
		n.Flags = unix.IFA_F_NODAD
	}
	return n
}

func loRoute(lo netlink.Link, a netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: hostNet(a), Protocol: routeProtocol,
		Scope: netlink.SCOPE_LINK}
	if a.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
	}
	return r
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func dropRoutes(lo netlink.Link, keep []netip.Addr) error {
	routes, err := netlinksafe.RouteListFiltered(netlink.FAMILY_ALL,
		&netlink.Route{LinkIndex: lo.Attrs().Index, Protocol: routeProtocol},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil {
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && slices.Contains(keep, a.Unmap()) {
				continue
			}
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("remove route to %s: %w", r.Dst, err)
		}
	}
	return nil
}

// Cleanup removes what any run of this package, also a dead one, has put on the node. It may be called
// at any time and twice, but not while Run runs.
func Cleanup(ctx context.Context) error {
	_, err := netfilter.Remove(ctx, Table)
	errs := []error{err}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return errors.Join(append(errs, fmt.Errorf("find loopback interface: %w", err))...)
	}
	errs = append(errs, dropRoutes(lo, nil))
	for _, a := range []netip.Addr{AddrV4, AddrV6} {
		if err := netlink.AddrDel(lo, loAddr(a)); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %s: %w", a, err))
		}
	}
	return errors.Join(errs...)
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
