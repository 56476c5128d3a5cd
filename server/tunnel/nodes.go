package tunnel

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

// Kind is the kind of an address.
type Kind int

const (
	// Host is an address of the node itself, or its name.
	Host Kind = iota + 1
	// Pod is an address from the node's pod range.
	Pod
)

// Place describes what an address belongs to.
type Place struct {
	Kind Kind
	Node string
	// Address is an address to reach the node directly, invalid if there is none. For a Pod it is the pod's address.
	Address netip.Addr
	// KubeletPort is the port of the node's kubelet, 0 if unknown.
	KubeletPort uint16
}

// Nodes maps addresses to nodes.
type Nodes struct {
	cluster []netip.Prefix
	// Disputed reports whether an address that a node claims belongs to another machine; nil means none does. Set it
	// before Follow.
	Disputed func(node string, addr netip.Addr) bool
	synced   cache.DoneChecker // set by Follow

	mu    sync.RWMutex
	nodes map[string]*node
	// If several nodes claim an address or range, it belongs to the oldest node.
	addrs  map[netip.Addr][]*node
	ranges map[netip.Prefix][]*node
	bits   []int // the prefix lengths in ranges
}

// node holds the needed fields of a Node.
type node struct {
	name    string
	created time.Time
	port    uint16
	addrs   []netip.Addr // the internal ones first
	ranges  []netip.Prefix
}

// NewNodes returns an empty Nodes. cluster are the cluster's pod ranges: pods have addresses only in these, and nodes
// have none there.
func NewNodes(cluster []netip.Prefix) *Nodes {
	return &Nodes{cluster: cluster, nodes: map[string]*node{}, addrs: map[netip.Addr][]*node{},
		ranges: map[netip.Prefix][]*node{}}
}

// Follow follows the informer of Nodes. Call it once, before Lookup.
func (n *Nodes) Follow(informer cache.SharedIndexInformer) error {
	reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.set(o) },
		UpdateFunc: func(_, o any) { n.set(o) },
		DeleteFunc: func(o any) {
			if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if o, ok := o.(*corev1.Node); ok {
				n.forget(o.Name)
			}
		},
	})
	if err != nil {
		return err
	}
	n.synced = reg.HasSyncedChecker()
	return nil
}

// waitSynced blocks until all existing nodes have been seen, or ctx ends.
func (n *Nodes) waitSynced(ctx context.Context) error {
	if n.synced == nil {
		return nil
	}
	select {
	case <-n.synced.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (n *Nodes) set(o any) {
	obj, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	now := n.parse(obj)
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.nodes[now.name]; was != nil {
		if was.same(now) {
			return // most changes are of conditions
		}
		n.drop(was)
	}
	n.nodes[now.name] = now
	for _, a := range now.addrs {
		n.addrs[a] = insert(n.addrs[a], now)
	}
	for _, r := range now.ranges {
		n.ranges[r] = insert(n.ranges[r], now)
	}
	n.measure()
}

func (n *Nodes) forget(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if was := n.nodes[name]; was != nil {
		n.drop(was)
		n.measure()
	}
}

func (n *Nodes) drop(was *node) {
	delete(n.nodes, was.name)
	for _, a := range was.addrs {
		without(n.addrs, a, was)
	}
	for _, r := range was.ranges {
		without(n.ranges, r, was)
	}
}

func (n *Nodes) measure() {
	n.bits = n.bits[:0]
	for r := range n.ranges {
		if !slices.Contains(n.bits, r.Bits()) {
			n.bits = append(n.bits, r.Bits())
		}
	}
}

func insert(list []*node, x *node) []*node {
	list = append(slices.Clone(list), x)
	slices.SortFunc(list, older)
	return list
}

func without[K comparable](m map[K][]*node, k K, x *node) {
	m[k] = slices.DeleteFunc(slices.Clone(m[k]), func(o *node) bool { return o == x })
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// Bounds on what is stored of a Node, whose content the node controls.
const (
	maxAddresses = 16
	maxRanges    = 2 // one per family
)

func (n *Nodes) parse(o *corev1.Node) *node {
	out := &node{name: o.Name, created: o.CreationTimestamp.Time}
	if p := o.Status.DaemonEndpoints.KubeletEndpoint.Port; p > 0 && p < 1<<16 {
		out.port = uint16(p)
	}
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range o.Status.Addresses {
			if a.Type != kind {
				continue
			}
			if len(out.addrs) == maxAddresses {
				break
			}
			ip, err := netip.ParseAddr(a.Address)
			if ip = ip.Unmap(); err == nil && ip.Zone() == "" && !slices.Contains(out.addrs, ip) &&
				!n.inPodRanges(netip.PrefixFrom(ip, ip.BitLen())) {
				out.addrs = append(out.addrs, ip)
			}
		}
	}
	ranges := o.Spec.PodCIDRs
	if len(ranges) == 0 && o.Spec.PodCIDR != "" {
		ranges = []string{o.Spec.PodCIDR}
	}
	for _, s := range ranges[:min(len(ranges), maxRanges)] {
		if p, err := netip.ParsePrefix(s); err == nil && !slices.Contains(out.ranges, p.Masked()) && n.inPodRanges(p) {
			out.ranges = append(out.ranges, p.Masked())
		}
	}
	return out
}

// inPodRanges reports whether a range is inside one of the cluster's pod ranges.
func (n *Nodes) inPodRanges(p netip.Prefix) bool {
	return slices.ContainsFunc(
		n.cluster, func(c netip.Prefix) bool { return c.Bits() <= p.Bits() && c.Contains(p.Addr()) })
}

func (n *node) same(o *node) bool {
	return n.created.Equal(o.created) && n.port == o.port && slices.Equal(n.addrs, o.addrs) &&
		slices.Equal(n.ranges, o.ranges)
}

// Lookup returns the place of a node's name or an address, false if it is unknown.
func (n *Nodes) Lookup(host string) (Place, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if x := n.nodes[strings.ToLower(host)]; x != nil {
			return n.host(x), true
		}
		return Place{}, false
	}
	ip = ip.Unmap()
	for _, x := range n.addrs[ip] {
		if n.disputed(x, ip) {
			continue
		}
		p := n.host(x)
		p.Address = ip
		return p, true
	}
	var owner *node // of overlapping ranges, the oldest node's counts
	for _, b := range n.bits {
		r, err := ip.Prefix(b)
		if err != nil {
			continue // longer than an address of this family
		}
		if list := n.ranges[r]; len(list) > 0 && (owner == nil || older(list[0], owner) < 0) {
			owner = list[0]
		}
	}
	if owner == nil {
		return Place{}, false
	}
	return Place{Kind: Pod, Node: owner.name, Address: ip}, true
}

func older(a, b *node) int {
	return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.name, b.name))
}

func (n *Nodes) disputed(x *node, ip netip.Addr) bool {
	return n.Disputed != nil && n.Disputed(x.name, ip)
}

func (n *Nodes) host(x *node) Place {
	p := Place{Kind: Host, Node: x.name, KubeletPort: x.port}
	for _, a := range x.addrs {
		if !n.disputed(x, a) {
			p.Address = a
			break
		}
	}
	return p
}
