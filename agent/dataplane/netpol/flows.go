package netpol

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// flows ends connections that policies no longer allow. What is established passes the rules without
// being looked at, so it is taken out of conntrack; its next packet then counts as the first of a
// connection. That reads all of conntrack, so it is done beside the sync loop, and what comes meanwhile is
// taken together.
type flows struct {
	handle *netlink.Handle
	wake   chan struct{}
	// allowed asks the rules about the first packet of a connection.
	allowed func(rules.Packet) bool
	ended   func(n uint, err error)
}

// pause is the least time from one look through conntrack to the next.
const pause = time.Second

func newFlows() (*flows, error) {
	h, err := netlink.NewHandle(unix.NETLINK_NETFILTER, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return &flows{handle: h, wake: make(chan struct{}, 1)}, nil
}

// check asks for a look through conntrack.
func (f *flows) check() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *flows) run(ctx context.Context, families []ruleset.Family) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		for _, fam := range families {
			f.ended(f.clean(fam))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// clean looks through conntrack once, and once more soon when the kernel could not show it whole.
func (f *flows) clean(fam ruleset.Family) (uint, error) {
	n, err := f.end(fam)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		f.check()
		err = nil
	}
	return n, err
}

func (f *flows) end(fam ruleset.Family) (uint, error) {
	own := map[netip.Addr]bool{}
	addrs, err := f.handle.AddrList(nil, int(fam))
	if err != nil {
		return 0, fmt.Errorf("list addresses of the node: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			own[ip.Unmap()] = true
		}
	}
	n, err := f.handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(fam),
		filter(func(c *netlink.ConntrackFlow) bool {
			p, ok := packetOf(c)
			// What the node itself sends or gets does not pass the rules.
			return ok && !own[p.Src] && !own[p.Dst] && !f.allowed(p)
		}))
	if err != nil {
		err = fmt.Errorf("end connections that are forbidden now: %w", err)
	}
	return n, err
}

// packetOf is the first packet of a connection as the forward hook saw it: from its real source to the
// endpoint that was chosen for it.
func packetOf(c *netlink.ConntrackFlow) (rules.Packet, bool) {
	src, ok1 := netip.AddrFromSlice(c.Forward.SrcIP)
	dst, ok2 := netip.AddrFromSlice(c.Reverse.SrcIP)
	p := rules.Packet{Src: src.Unmap(), Dst: dst.Unmap(), Protocol: c.Forward.Protocol}
	switch p.Protocol {
	case ruleset.TCP, ruleset.UDP, ruleset.SCTP:
		p.Port = c.Reverse.SrcPort
	}
	return p, ok1 && ok2
}

type filter func(*netlink.ConntrackFlow) bool

func (f filter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool { return f(c) }
