package network

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/overlaykey"
)

// believed is what this node believes the others: their Nodes are data from outside, from which routes and tunnels are
// made.
type believed struct {
	self string
	// backend is flannel's name of the one that is in use, empty with a network of the user's.
	backend string
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
		out := peer{name: p.name, created: p.created, addrs: p.addrs, internal: p.internal,
			annotations: maps.Clone(p.annotations)}
		for _, r := range p.ranges {
			if why := claims.take(r, p.name); why != "" {
				no(r, why)
			} else if p.name != b.self && !within(r, b.cluster) {
				no(r, "it is outside cluster-cidr")
			} else {
				out.ranges = append(out.ranges, r)
			}
		}
		for _, f := range families {
			public := p.annotations[f.Public]
			if public == "" {
				continue
			}
			end, older, why := b.tunnel(p, f, claims)
			if out.annotations[f.Data] = string(end.Data); p.name == b.self {
				continue // its annotations may be those of a former backend yet
			}
			if why != "" {
				no(fmt.Sprintf("%s %.64q", f.Public, public), why)
				delete(out.annotations, f.Public)
			}
			if older != "" { // flannel removes what it has of one of them, and with it the other's
				refused = append(refused, fmt.Sprintf("%s of Node %.63s: its machine is Node %.63s now",
					f.Public, older, p.name))
				delete(accepted[older].annotations, f.Public)
			}
		}
		accepted[p.name] = out
	}
	return accepted, refused
}

// families are the two of addresses.
var families = []overlaykey.Family{overlaykey.V4, overlaykey.V6}

// tunnel is the end of a node's tunnel in a family, or says why other nodes have none to it. older is a Node that
// loses its own to this one.
func (b believed) tunnel(p peer, f overlaykey.Family, c *claims) (end overlaykey.End, older, why string) {
	if b.backend != "" && p.name != b.self && p.annotations[annManaged] == "true" &&
		p.annotations[annType] != b.backend {
		return end, "", fmt.Sprintf("its backend is %.32q, that of this node is %q", p.annotations[annType], b.backend)
	}
	if p.name != b.self {
		if why := b.reachedAt(p, f, c); why != "" {
			return end, "", why
		}
	}
	if p.annotations[annManaged] != "true" {
		return end, "", "" // it has no tunnel
	}
	end, err := overlaykey.Parse(b.backend, p.annotations[f.Data])
	if err != nil {
		return end, "", fmt.Sprintf("%s: %v", f.Data, err)
	}
	older, why = c.takeKey(end.Key, f, p, b.self)
	return end, older, why
}

// reachedAt returns why a node is not reached at its public address; empty if it is. The address is one of the Node's,
// or the one with which an administrator has overwritten it, or that of the interface that flannel-iface names on
// that node, which no Node has.
func (b believed) reachedAt(p peer, f overlaykey.Family, c *claims) string {
	public := p.annotations[f.Public]
	a, err := netip.ParseAddr(public)
	if err != nil || a.Zone() != "" {
		return "it is not an address"
	}
	a = a.Unmap()
	switch by := c.addrs[a]; {
	case a.Is4() != (f == overlaykey.V4):
		return "it is of the other family"
	case !a.IsGlobalUnicast():
		return "other machines reach no node there"
	case slices.Contains(b.ips, a):
		return "it is this node's own"
	case within(netip.PrefixFrom(a, a.BitLen()), b.cluster), within(netip.PrefixFrom(a, a.BitLen()), b.services):
		return "it lies in the cluster's own ranges"
	case slices.Contains(p.addrs, a), public == p.annotations[f.Overwrite], by == "", by == p.name:
		return ""
	default:
		return "it is an address of Node " + by
	}
}

// within reports whether one of the ranges holds all of r.
func within(r netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(c netip.Prefix) bool {
		return c.Bits() <= r.Bits() &&
			c.Contains(r.Addr())
	})
}

// claims are the ranges and addresses that nodes have so far.
type claims struct {
	ranges []owned // in order; none overlaps another
	keys   map[familyKey]keyOwner
	addrs  map[netip.Addr]string // the first Node with an address
}

type owned struct {
	netip.Prefix
	by string
}

// familyKey is a tunnel's key or MAC address. The families have devices of their own.
type familyKey struct {
	family overlaykey.Family
	key    string
}

// keyOwner is the node that has a key, and where it is reached.
type keyOwner struct{ public, by string }

func newClaims(order []peer) *claims {
	c := &claims{keys: map[familyKey]keyOwner{}, addrs: map[netip.Addr]string{}}
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
	at, _ := slices.BinarySearchFunc(c.ranges, r, func(o owned,
		r netip.Prefix) int {
		return o.Addr().Compare(r.Addr())
	})
	for _, i := range []int{at - 1, at} {
		if i >= 0 && i < len(c.ranges) && c.ranges[i].Overlaps(r) {
			return fmt.Sprintf("it overlaps %s of Node %s", c.ranges[i].Prefix, c.ranges[i].by)
		}
	}
	c.ranges = slices.Insert(c.ranges, at, owned{r, by})
	return ""
}

// takeKey gives a node the key of its tunnel, or says why not: with another node's, a node would take over what is
// sent to that one. A machine that was renamed has the key of its former Node, older, which loses it.
func (c *claims) takeKey(key string, f overlaykey.Family, p peer, self string) (older, why string) {
	if key == "" {
		return "", ""
	}
	k, public := familyKey{f, key}, p.annotations[f.Public]
	if o, taken := c.keys[k]; taken {
		if o.by == self || !overlaykey.Shares(public, o.public, p.internal) {
			return "", "its tunnel has the key of that of Node " + o.by
		}
		older = o.by
	}
	c.keys[k] = keyOwner{public, p.name}
	return older, ""
}
