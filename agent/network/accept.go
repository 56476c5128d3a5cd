package network

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// believed is what this node believes the others: their Nodes are data from outside, from which routes and tunnels are
// made.
type believed struct {
	self string
	// cluster and services are the cluster's ranges; ips are this node's own addresses.
	cluster, services []netip.Prefix
	ips               []netip.Addr
}

// accept returns the peers with those pod ranges and public addresses alone that they may have, and a sentence for each
// that was left out. This node goes first, then older Nodes before younger ones: what two claim is the first one's.
func (b believed) accept(all map[string]peer) (accepted map[string]peer, refused []string) {
	order := slices.SortedFunc(maps.Values(all), func(x, y peer) int {
		if mine := x.name == b.self; mine != (y.name == b.self) {
			if mine {
				return -1
			}
			return 1
		}
		if c := x.created.Compare(y.created); c != 0 {
			return c
		}
		return strings.Compare(x.name, y.name)
	})
	claims := newClaims(order)
	accepted = make(map[string]peer, len(all))
	for _, p := range order {
		no := func(what any, why string) {
			refused = append(refused, fmt.Sprintf("%v of Node %.63s: %s", what, p.name, why))
		}
		out := peer{name: p.name, created: p.created, addrs: p.addrs, annotations: maps.Clone(p.annotations)}
		for _, r := range p.ranges {
			if why := claims.take(r, p.name); why != "" {
				no(r, why)
			} else if p.name != b.self && !within(r, b.cluster) {
				no(r, "it is outside cluster-cidr")
			} else {
				out.ranges = append(out.ranges, r)
			}
		}
		if p.name != b.self {
			for _, k := range []struct{ public, override, data string }{{annPublicIP, annOverride, annData}, {annPublicIPv6, annOverride6, annV6Data}} {
				if p.annotations[k.public] == "" {
					continue
				}
				why := b.reachedAt(p, p.annotations[k.public], p.annotations[k.override], claims)
				if why == "" {
					why = claims.takeKey(p.annotations[k.data], p.annotations[k.public], p.name)
				}
				if why != "" {
					no(fmt.Sprintf("%s %.64q", k.public, p.annotations[k.public]), why)
					delete(out.annotations, k.public)
				}
			}
		} else {
			_ = claims.takeKey(p.annotations[annData], p.annotations[annPublicIP], p.name) // nobody has been before it
			_ = claims.takeKey(p.annotations[annV6Data], p.annotations[annPublicIPv6], p.name)
		}
		accepted[p.name] = out
	}
	return accepted, refused
}

// reachedAt says why a node is not reached at its public address; empty if it is. The address is one of the Node's, or the one
// with which an administrator has overwritten it, or that of the interface that flannel-iface names on that node, which
// no Node has.
func (b believed) reachedAt(p peer, public, override string, c *claims) string {
	a, err := netip.ParseAddr(public)
	if err != nil {
		return "it is not an address"
	}
	a = a.Unmap()
	switch by := c.addrs[a]; {
	case !a.IsGlobalUnicast():
		return "other machines reach no node there"
	case slices.Contains(b.ips, a):
		return "it is this node's own"
	case within(netip.PrefixFrom(a, a.BitLen()), b.cluster), within(netip.PrefixFrom(a, a.BitLen()), b.services):
		return "it lies in the cluster's own ranges"
	case slices.Contains(p.addrs, a), public == override, by == "", by == p.name:
		return ""
	default:
		return "it is an address of Node " + by
	}
}

// within reports whether one of the ranges holds all of r.
func within(r netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(c netip.Prefix) bool { return c.Bits() <= r.Bits() && c.Contains(r.Addr()) })
}

// claims are what nodes have so far.
type claims struct {
	ranges []owned // in order; none overlaps another
	keys   map[string]keyOwner
	addrs  map[netip.Addr]string // the first Node with an address
}

type owned struct {
	netip.Prefix
	by string
}

// keyOwner is the node that has a tunnel's key or MAC address, and where it is reached.
type keyOwner struct{ public, by string }

func newClaims(order []peer) *claims {
	c := &claims{keys: map[string]keyOwner{}, addrs: map[netip.Addr]string{}}
	for _, p := range order {
		for _, a := range p.addrs {
			if _, taken := c.addrs[a]; !taken {
				c.addrs[a] = p.name
			}
		}
	}
	return c
}

// take gives a node a range, or says why not. Only the neighbours in the order need a look: none of them overlap.
func (c *claims) take(r netip.Prefix, by string) string {
	at, _ := slices.BinarySearchFunc(c.ranges, r, func(o owned, r netip.Prefix) int { return o.Addr().Compare(r.Addr()) })
	for _, i := range []int{at - 1, at} {
		if i >= 0 && i < len(c.ranges) && c.ranges[i].Overlaps(r) {
			return fmt.Sprintf("it overlaps %s of Node %s", c.ranges[i].Prefix, c.ranges[i].by)
		}
	}
	c.ranges = slices.Insert(c.ranges, at, owned{r, by})
	return ""
}

// takeKey gives a node the MAC address (vxlan) or key (WireGuard) that it names, or says why not: with another node's a
// node would take over what is sent to that one. A machine whose node was renamed has both at the same place.
func (c *claims) takeKey(data, public, by string) string {
	key := tunnelKey(data)
	if key == "" {
		return ""
	}
	if o, taken := c.keys[key]; taken && o.public != public {
		return "its tunnel has the identity of that of Node " + o.by
	}
	c.keys[key] = keyOwner{public, by}
	return ""
}

// tunnelKey is what tells the node's tunnel from others in the data of flannel's backends.
func tunnelKey(data string) string {
	var d struct{ VtepMAC, PublicKey string }
	if json.Unmarshal([]byte(data), &d) != nil {
		return ""
	}
	return strings.ToLower(d.VtepMAC) + d.PublicKey
}
