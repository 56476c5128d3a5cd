package servicelb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// Condition is the Service's condition that says whether it is served, and why not.
const Condition = "umiak.io/LoadBalancer"

// Reasons of the condition, and of events.
const (
	Served       = "Served"
	SomeNodes    = "ServedOnSomeNodes"
	PortConflict = "PortConflict"        // another Service has it
	HostHasPort  = "HostPortInUse"       // a program on the nodes has it
	Reserved     = "PortReserved"        // umiak or node ports have it
	NoAddress    = "NoAddress"           // no node, no endpoint here with policy Local, pool used up
	NotConfirmed = "AddressNotConfirmed" // only the node itself says that it is its
	NotOurs      = "AddressNotOffered"   // spec.loadBalancerIP is neither a node's nor the pool's
)

// portKey is a port of a protocol.
type portKey struct {
	port  int32
	proto corev1.Protocol
}

func (p portKey) String() string { return fmt.Sprintf("%d/%s", p.port, p.proto) }

// What is kept of a Node at most, whatever it says.
const (
	maxAddresses = 16
	maxPorts     = 4096
)

func parsePorts(s string) map[portKey]bool {
	out := map[portKey]bool{}
	for f := range strings.SplitSeq(s, ",") {
		if len(out) == maxPorts {
			break
		}
		num, proto, _ := strings.Cut(strings.TrimSpace(f), "/")
		if n, err := strconv.ParseUint(num, 10, 16); err == nil && n > 0 {
			out[portKey{int32(n), corev1.Protocol(proto)}] = true
		}
	}
	return out
}

// Result is what a Service gets.
type Result struct {
	Addrs           []netip.Addr
	Reason, Message string
}

// OK says whether the Service is served anywhere.
func (r Result) OK() bool { return len(r.Addrs) > 0 }

// Planner decides which Service gets which addresses.
type Planner struct {
	// Pool are the addresses to give; empty: those of the nodes.
	Pool Pool
	// Reserved are ports that no Service gets on a node's address, and what for.
	Reserved func(port int32, proto corev1.Protocol) string
	// Disputed reports whether an address that a node says it has is another's; nil means none is.
	Disputed func(node string, addr netip.Addr) bool
	// Supported reports whether more than the node itself says that an address is its; nil means so it is. An
	// administrator says so with names.ConfirmedAddresses.
	Supported func(node string, addr netip.Addr) bool
}

// node is what counts of a Node.
type node struct {
	name  string
	addrs []netip.Addr
	// confirmed are the addresses that an administrator says it has.
	confirmed []netip.Addr
	held      map[portKey]bool
	kubelet   int32
	ready     bool
	exclude   bool
}

func nodeOf(n *corev1.Node) node {
	out := node{name: n.Name, held: parsePorts(n.Annotations[wellknown.HostPorts]),
		kubelet: n.Status.DaemonEndpoints.KubeletEndpoint.Port}
	_, out.exclude = n.Labels[corev1.LabelNodeExcludeBalancers]
	out.exclude = out.exclude || n.DeletionTimestamp != nil
	for _, c := range n.Status.Conditions {
		out.ready = out.ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	}
	for s := range strings.SplitSeq(n.Annotations[wellknown.ConfirmedAddresses], ",") {
		if ip, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil && len(out.confirmed) < maxAddresses {
			out.confirmed = append(out.confirmed, ip.Unmap())
		}
	}
	// External addresses first: they are the ones to tell others. Packets to them often arrive with the
	// internal one, when a router translates, so both are served.
	for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
		for _, a := range n.Status.Addresses {
			if a.Type != kind || len(out.addrs) == maxAddresses {
				continue
			}
			if ip, err := netip.ParseAddr(a.Address); err == nil && !slices.Contains(out.addrs, ip.Unmap()) {
				out.addrs = append(out.addrs, ip.Unmap())
			}
		}
	}
	return out
}

// ours says whether a Service is this controller's business.
func ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.DeletionTimestamp == nil &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == wellknown.LoadBalancerClass)
}

func isLocal(s *corev1.Service) bool {
	return s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func name(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func portsOf(s *corev1.Service) []portKey {
	out := make([]portKey, 0, len(s.Spec.Ports))
	for _, p := range s.Spec.Ports {
		out = append(out, portKey{p.Port, cmp.Or(p.Protocol, corev1.ProtocolTCP)})
	}
	return out
}

// slot is a port on an address: one Service has it.
type slot struct {
	addr netip.Addr
	portKey
}

// run is the state of one planning.
type run struct {
	Planner
	nodes  []node
	byAddr map[netip.Addr]*node
	owner  map[slot]types.NamespacedName
	used   map[netip.Addr]bool
}

// Plan gives every Service that is ours its addresses. local names the nodes on which a Service with the
// external traffic policy Local has endpoints.
//
// A Service that has a port on an address keeps it; between those that do not, the older one goes first.
// The result does not depend on the order of its arguments.
func (p Planner) Plan(nodes []*corev1.Node, services []*corev1.Service,
	local func(types.NamespacedName) map[string]bool) map[types.NamespacedName]Result {
	r := run{Planner: p, byAddr: map[netip.Addr]*node{}, owner: map[slot]types.NamespacedName{},
		used: map[netip.Addr]bool{}}
	for _, n := range nodes {
		x := nodeOf(n)
		if p.Disputed != nil {
			x.addrs = slices.DeleteFunc(x.addrs, func(a netip.Addr) bool { return p.Disputed(x.name, a) })
		}
		r.nodes = append(r.nodes, x)
	}
	slices.SortFunc(r.nodes, func(a, b node) int { return strings.Compare(a.name, b.name) })
	for i := range r.nodes {
		for _, a := range r.nodes[i].addrs {
			if r.byAddr[a] == nil && r.unsupported(r.nodes[i], a) == nil {
				r.byAddr[a] = &r.nodes[i]
			}
		}
	}
	services = slices.DeleteFunc(slices.Clone(services), func(s *corev1.Service) bool { return !ours(s) })
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(name(a).String(), name(b).String())
	})
	for _, s := range services {
		r.keep(s)
	}
	out := make(map[types.NamespacedName]Result, len(services))
	for _, s := range services {
		var here map[string]bool
		if isLocal(s) {
			here = local(name(s))
		}
		res := r.place(s, here)
		for _, a := range res.Addrs {
			r.used[a] = true
			for _, p := range portsOf(s) {
				r.owner[slot{a, p}] = name(s)
			}
		}
		out[name(s)] = res
	}
	return out
}

// keep notes which ports a Service has: those that its status names and that it still wants.
func (r *run) keep(s *corev1.Service) {
	want := portsOf(s)
	for _, in := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil {
			continue
		}
		for _, p := range in.Ports {
			k := slot{a.Unmap(), portKey{p.Port, p.Protocol}}
			if _, taken := r.owner[k]; !taken && slices.Contains(want, k.portKey) {
				r.owner[k] = name(s)
				r.used[k.addr] = true
			}
		}
	}
}

// refusal is why an address is not for a Service.
type refusal struct{ reason, message string }

// check says why a Service may not have its ports on an address; nil if it may.
func (r *run) check(s *corev1.Service, a netip.Addr) *refusal {
	for _, p := range portsOf(s) {
		if by, taken := r.owner[slot{a, p}]; taken && by != name(s) {
			return &refusal{PortConflict, fmt.Sprintf("port %s of %s belongs to Service %s", p, a, by)}
		}
		n := r.byAddr[a]
		if n == nil {
			continue
		}
		what := ""
		if r.Reserved != nil {
			what = r.Reserved(p.port, p.proto)
		}
		switch {
		case what != "":
			return &refusal{Reserved, fmt.Sprintf("port %s is reserved for %s", p, what)}
		case p.proto == corev1.ProtocolTCP && p.port == n.kubelet:
			return &refusal{Reserved, fmt.Sprintf("port %s is the kubelet's", p)}
		case n.held[p]:
			return &refusal{HostHasPort, fmt.Sprintf("port %s is used by a program of node %s", p, n.name)}
		}
	}
	return nil
}

// unsupported says why an address is not used that a node says it has; nil if it is.
func (r *run) unsupported(n node, a netip.Addr) *refusal {
	if r.Supported == nil || slices.Contains(n.confirmed, a) || r.Supported(n.name, a) {
		return nil
	}
	return &refusal{NotConfirmed, fmt.Sprintf("only node %s itself says that it has the address %s, from which no server was asked; if it is right, run `umiak kubectl annotate node %s %s=%s --overwrite`",
		n.name, a, n.name, wellknown.ConfirmedAddresses, a)}
}

// families are those of a Service, as "is IPv4".
func families(s *corev1.Service) []bool {
	if len(s.Spec.IPFamilies) == 0 {
		return []bool{true}
	}
	var out []bool
	for _, f := range s.Spec.IPFamilies {
		out = append(out, f == corev1.IPv4Protocol)
	}
	return out
}

// place finds a Service's addresses.
func (r *run) place(s *corev1.Service, local map[string]bool) Result {
	wish := netip.Addr{}
	if s.Spec.LoadBalancerIP != "" {
		a, err := netip.ParseAddr(s.Spec.LoadBalancerIP)
		if err != nil {
			return Result{Reason: NotOurs, Message: fmt.Sprintf("spec.loadBalancerIP %q is not an address",
				s.Spec.LoadBalancerIP)}
		}
		wish = a.Unmap()
	}
	if len(r.Pool) > 0 {
		return r.fromPool(s, wish)
	}
	return r.onNodes(s, wish, local)
}

func (r *run) onNodes(s *corev1.Service, wish netip.Addr, local map[string]bool) Result {
	candidates := slices.DeleteFunc(slices.Clone(r.nodes), func(n node) bool {
		return n.exclude || isLocal(s) && !local[n.name]
	})
	// Of a node that does not answer nobody knows whether it serves; if none does, the server is cut off.
	if slices.ContainsFunc(candidates, func(n node) bool { return n.ready }) {
		candidates = slices.DeleteFunc(candidates, func(n node) bool { return !n.ready })
	}
	var out Result
	var refused []refusal
	offered := false
	for _, v4 := range families(s) {
		for _, n := range candidates {
			for _, a := range n.addrs {
				if a.Is4() != v4 || wish.IsValid() && a != wish {
					continue
				}
				offered = true
				if no := r.unsupported(n, a); no != nil {
					refused = append(refused, *no)
				} else if no := r.check(s, a); no != nil {
					refused = append(refused, *no)
				} else if !slices.Contains(out.Addrs, a) {
					out.Addrs = append(out.Addrs, a)
				}
			}
		}
	}
	switch {
	case out.OK() && len(refused) == 0:
		out.Reason, out.Message = Served, fmt.Sprintf("served on %d addresses of nodes", len(out.Addrs))
	case out.OK():
		out.Reason, out.Message = SomeNodes, "not on all nodes: "+messages(refused)
	case len(refused) > 0:
		out.Reason, out.Message = refused[0].reason, messages(refused)
	case wish.IsValid() && !offered:
		out.Reason, out.Message = NotOurs, fmt.Sprintf("spec.loadBalancerIP %s is not the address of a node that may serve it", wish)
	case isLocal(s):
		out.Reason, out.Message = NoAddress, "externalTrafficPolicy is Local and no node that may serve it has an endpoint"
	default:
		out.Reason, out.Message = NoAddress, "no node may serve it"
	}
	return out
}

// messages joins the different ones of the refusals.
func messages(in []refusal) string {
	var out []string
	for _, r := range in {
		if !slices.Contains(out, r.message) {
			out = append(out, r.message)
		}
	}
	if len(out) > 4 {
		out = append(out[:4], fmt.Sprintf("and %d more", len(out)-4))
	}
	return strings.Join(out, "; ")
}

// fromPool gives one address a family: the one that the Service has, else one that nobody uses, else one
// whose users leave its ports free.
func (r *run) fromPool(s *corev1.Service, wish netip.Addr) Result {
	var out Result
	if wish.IsValid() && !r.Pool.has(wish) {
		return Result{Reason: NotOurs, Message: fmt.Sprintf("spec.loadBalancerIP %s is not in load-balancer-pool",
			wish)}
	}
	var refused []refusal
	for _, v4 := range families(s) {
		a, no := r.pick(s, wish, v4)
		if a.IsValid() {
			out.Addrs = append(out.Addrs, a)
		}
		refused = append(refused, no...)
	}
	switch {
	case out.OK():
		out.Reason, out.Message = Served, "served on addresses of the pool"
	case len(refused) > 0:
		out.Reason, out.Message = refused[0].reason, messages(refused)
	default:
		out.Reason, out.Message = NoAddress, "the pool has no address of this family"
	}
	return out
}

func (r *run) pick(s *corev1.Service, wish netip.Addr, v4 bool) (netip.Addr, []refusal) {
	var refused []refusal
	try := func(a netip.Addr) bool {
		no := r.check(s, a)
		if no != nil && len(refused) < 5 {
			refused = append(refused, *no)
		}
		return no == nil
	}
	if wish.IsValid() {
		if wish.Is4() == v4 && try(wish) {
			return wish, nil
		}
		return netip.Addr{}, refused
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err == nil && a.Is4() == v4 && r.Pool.has(a) && r.check(s, a) == nil {
			return a, nil
		}
	}
	for a := range r.Pool.all(v4) { // ends at the first that is free, however large the pool
		if !r.used[a] && r.check(s, a) == nil {
			return a, nil
		}
	}
	for a := range r.Pool.all(v4) {
		if try(a) {
			return a, nil
		}
	}
	return netip.Addr{}, refused
}
