package netpol

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// cluster is a set of API objects, and what NetworkPolicy says of a packet among them, written straight
// from its documentation: no index, no sets, one loop in the other.
type cluster struct {
	namespaces map[string]map[string]string
	pods       map[string]*v1.Pod
	policies   map[string]*networking.NetworkPolicy
}

const thisNode = "here"

// who finds the pod that has an address; nil if none.
func (c *cluster) who(a netip.Addr) *v1.Pod {
	for _, p := range c.pods {
		if p.Spec.HostNetwork || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a {
				return p
			}
		}
	}
	return nil
}

// allows says whether a connection may begin, as far as this node enforces it.
func (c *cluster) allows(p rules.Packet) bool {
	src, dst := c.who(p.Src), c.who(p.Dst)
	if p.Src == p.Dst && src != nil && src.Spec.NodeName == thisNode {
		return true // no policy keeps a pod from itself
	}
	if src != nil && src.Spec.NodeName == thisNode &&
		!c.allowsOneWay(src, networking.PolicyTypeEgress, p, p.Dst, dst, dst) {
		return false
	}
	if dst != nil && dst.Spec.NodeName == thisNode &&
		!c.allowsOneWay(dst, networking.PolicyTypeIngress, p, p.Src, src, dst) {
		return false
	}
	return true
}

func (c *cluster) allowsOneWay(subject *v1.Pod, dir networking.PolicyType, p rules.Packet, peer netip.Addr, peerPod,
	called *v1.Pod) bool {
	isolated := false
	for _, np := range c.policies {
		if np.Namespace != subject.Namespace || !matches(&np.Spec.PodSelector, subject.Labels) {
			continue
		}
		types := np.Spec.PolicyTypes
		if len(types) == 0 {
			types = []networking.PolicyType{networking.PolicyTypeIngress}
			if len(np.Spec.Egress) > 0 {
				types = append(types, networking.PolicyTypeEgress)
			}
		}
		if !slices.Contains(types, dir) {
			continue
		}
		isolated = true
		type rule struct {
			peers []networking.NetworkPolicyPeer
			ports []networking.NetworkPolicyPort
		}
		var all []rule
		if dir == networking.PolicyTypeIngress {
			for _, r := range np.Spec.Ingress {
				all = append(all, rule{r.From, r.Ports})
			}
		} else {
			for _, r := range np.Spec.Egress {
				all = append(all, rule{r.To, r.Ports})
			}
		}
		for _, r := range all {
			peerOK := len(r.peers) == 0 || slices.ContainsFunc(r.peers, func(x networking.NetworkPolicyPeer) bool {
				return c.peerMatches(x, np.Namespace, peer, peerPod)
			})
			portOK := len(r.ports) == 0 || slices.ContainsFunc(r.ports, func(x networking.NetworkPolicyPort) bool {
				return portMatches(x, p, called)
			})
			if peerOK && portOK {
				return true
			}
		}
	}
	return !isolated
}

func (c *cluster) peerMatches(x networking.NetworkPolicyPeer, ns string, a netip.Addr, pod *v1.Pod) bool {
	if x.IPBlock != nil {
		if !netip.MustParsePrefix(x.IPBlock.CIDR).Contains(a) {
			return false
		}
		return !slices.ContainsFunc(x.IPBlock.Except,
			func(e string) bool { return netip.MustParsePrefix(e).Contains(a) })
	}
	if pod == nil {
		return false
	}
	if x.NamespaceSelector == nil {
		if pod.Namespace != ns {
			return false
		}
	} else if l, known := c.namespaces[pod.Namespace]; !known || !matches(x.NamespaceSelector, l) {
		return false
	}
	return x.PodSelector == nil || matches(x.PodSelector, pod.Labels)
}

func portMatches(x networking.NetworkPolicyPort, p rules.Packet, called *v1.Pod) bool {
	proto := v1.ProtocolTCP
	if x.Protocol != nil {
		proto = *x.Protocol
	}
	if map[v1.Protocol]uint8{v1.ProtocolTCP: 6, v1.ProtocolUDP: 17, v1.ProtocolSCTP: 132}[proto] != p.Protocol {
		return false
	}
	switch {
	case x.Port == nil:
		return true
	case x.Port.Type == intstr.String:
		if called == nil {
			return false
		}
		for _, ctr := range called.Spec.Containers {
			for _, cp := range ctr.Ports {
				if cp.Name == x.Port.StrVal && cp.Protocol == proto && uint16(cp.ContainerPort) == p.Port {
					return true
				}
			}
		}
		return false
	case x.EndPort != nil:
		return int32(p.Port) >= x.Port.IntVal && int32(p.Port) <= *x.EndPort
	}
	return int32(p.Port) == x.Port.IntVal
}

// matches is written apart from the library's selectors.
func matches(s *metav1.LabelSelector, l map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := l[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		got, ok := l[e.Key]
		in := ok && slices.Contains(e.Values, got)
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			if !in {
				return false
			}
		case metav1.LabelSelectorOpNotIn:
			if in {
				return false
			}
		case metav1.LabelSelectorOpExists:
			if !ok {
				return false
			}
		case metav1.LabelSelectorOpDoesNotExist:
			if ok {
				return false
			}
		}
	}
	return true
}

// chance makes API objects up, from few words, so that they concern each other.
type chance struct{ *rand.Rand }

func (r chance) of(n int) bool { return r.IntN(n) == 0 }

func one[T any](r chance, in ...T) T { return in[r.IntN(len(in))] }

func (r chance) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if !r.of(4) {
			out[k] = one(r, "a", "b", "c")
		}
	}
	return out
}

func (r chance) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if r.of(4) {
		return s
	}
	if !r.of(3) {
		s.MatchLabels = map[string]string{one(r, "app", "tier"): one(r, "a", "b", "c")}
	}
	if r.of(3) {
		e := metav1.LabelSelectorRequirement{Key: one(r, "app", "tier"),
			Operator: one(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists,
				metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{one(r, "a", "b"), "c"}[:1+r.IntN(2)]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (r chance) addr(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd42::%x", 1+r.IntN(40)))
	}
	return netip.AddrFrom4([4]byte{10, 42, 0, byte(1 + r.IntN(40))})
}

func (r chance) prefix(v6 bool, longer int) netip.Prefix {
	a := r.addr(v6)
	p, _ := a.Prefix(min(a.BitLen(), a.BitLen()-6+longer+r.IntN(4)))
	return p
}

func (r chance) peers() (out []networking.NetworkPolicyPeer) {
	for range r.IntN(4) {
		var p networking.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			v6 := r.of(2)
			block := r.prefix(v6, 0)
			if r.of(5) {
				block = netip.MustParsePrefix(one(r, "0.0.0.0/0", "::/0"))
				v6 = block.Addr().Is6()
			}
			p.IPBlock = &networking.IPBlock{CIDR: block.String()}
			for range r.IntN(3) {
				if e := r.prefix(v6, 3); block.Contains(e.Addr()) && e.Bits() > block.Bits() {
					p.IPBlock.Except = append(p.IPBlock.Except, e.String())
				}
			}
		case 1:
			p.PodSelector = r.selector()
		case 2:
			p.NamespaceSelector = r.selector()
		case 3:
			p.PodSelector, p.NamespaceSelector = r.selector(), r.selector()
		}
		out = append(out, p)
	}
	return out
}

func (r chance) ports() (out []networking.NetworkPolicyPort) {
	for range r.IntN(4) {
		var p networking.NetworkPolicyPort
		if !r.of(4) {
			proto := one(r, v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP)
			p.Protocol = &proto
		}
		switch r.IntN(5) {
		case 0:
		case 1, 2:
			port := intstr.FromString(one(r, "http", "dns"))
			p.Port = &port
		default:
			port := intstr.FromInt32(int32(80 + r.IntN(6)))
			p.Port = &port
			if r.of(3) {
				end := port.IntVal + int32(r.IntN(4))
				p.EndPort = &end
			}
		}
		out = append(out, p)
	}
	return out
}

func (r chance) policy(n int) *networking.NetworkPolicy {
	np := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", n%3),
		Name: fmt.Sprintf("np%d", n)}}
	np.Spec.PodSelector = *r.selector()
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networking.NetworkPolicyIngressRule{From: r.peers(),
			Ports: r.ports()})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networking.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
	}
	np.Spec.PolicyTypes = one(r, nil, nil, []networking.PolicyType{networking.PolicyTypeIngress},
		[]networking.PolicyType{networking.PolicyTypeEgress},
		[]networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress})
	return np
}

// pod makes a pod whose addresses nobody else has.
func (r chance) pod(n int, taken func(netip.Addr) bool) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", n%3), Name: fmt.Sprintf("p%d", n),
		Labels: r.labels()}}
	p.Spec.NodeName = one(r, thisNode, thisNode, "there")
	p.Spec.HostNetwork = r.of(10)
	p.Status.Phase = one(r, v1.PodPending, v1.PodRunning, v1.PodRunning, v1.PodRunning, v1.PodSucceeded)
	for _, v6 := range []bool{false, true} {
		if a := r.addr(v6); !r.of(6) && !taken(a) {
			p.Status.PodIPs = append(p.Status.PodIPs, v1.PodIP{IP: a.String()})
		}
	}
	for range 1 + r.IntN(2) {
		var c v1.Container
		for range r.IntN(3) {
			c.Ports = append(c.Ports, v1.ContainerPort{Name: one(r, "http", "dns", ""),
				ContainerPort: int32(80 + r.IntN(6)),
				Protocol:      one(r, v1.ProtocolTCP, v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP)})
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	return p
}

// step changes something at random, in the cluster and in the builder.
func (c *cluster) step(r chance, b *rules.Builder) {
	switch r.IntN(6) {
	case 0, 1:
		n := r.IntN(12)
		np := r.policy(n)
		k := np.Namespace + "/" + np.Name
		if r.of(3) {
			delete(c.policies, k)
			b.DeletePolicy(np.Namespace, np.Name)
			return
		}
		c.policies[k] = np
		setPolicy(b, np)
	case 2:
		name := fmt.Sprintf("ns%d", r.IntN(3))
		if r.of(5) {
			delete(c.namespaces, name)
			b.DeleteNamespace(name)
			return
		}
		c.namespaces[name] = r.labels()
		b.SetNamespace(name, c.namespaces[name])
	default:
		n := r.IntN(25)
		k := fmt.Sprintf("ns%d/p%d", n%3, n)
		delete(c.pods, k)
		if r.of(4) {
			b.DeletePod(fmt.Sprintf("ns%d", n%3), fmt.Sprintf("p%d", n))
			return
		}
		p := r.pod(n, func(a netip.Addr) bool { return c.who(a) != nil })
		c.pods[k] = p
		setPod(b, p)
	}
}

func setPolicy(b *rules.Builder, np *networking.NetworkPolicy) {
	p, err := policyOf(np)
	if err != nil {
		panic(err)
	}
	b.SetPolicy(p)
}

func setPod(b *rules.Builder, p *v1.Pod) {
	info := podOf(p)
	if info == nil {
		b.DeletePod(p.Namespace, p.Name)
		return
	}
	b.SetPod(info.pod(thisNode, nil))
}

func newCluster() *cluster {
	return &cluster{namespaces: map[string]map[string]string{}, pods: map[string]*v1.Pod{},
		policies: map[string]*networking.NetworkPolicy{}}
}

// fresh is a builder that was told everything at once.
func (c *cluster) fresh() *rules.Builder {
	b := rules.NewBuilder(ruleset.IPv4, ruleset.IPv6)
	for _, np := range c.policies {
		setPolicy(b, np)
	}
	for _, p := range c.pods {
		setPod(b, p)
	}
	for name, l := range c.namespaces {
		b.SetNamespace(name, l)
	}
	return b
}

func (r chance) packet() rules.Packet {
	v6 := r.of(2)
	return rules.Packet{Src: r.addr(v6), Dst: r.addr(v6),
		Protocol: one(r, ruleset.TCP, ruleset.TCP, ruleset.UDP, ruleset.SCTP, uint8(1)), Port: uint16(79 + r.IntN(10))}
}

func setNamespace(c *cluster, b *rules.Builder, name string) {
	c.namespaces[name] = map[string]string{}
	b.SetNamespace(name, nil)
}

func parsePolicy(t testing.TB, text string) *networking.NetworkPolicy {
	return parse[networking.NetworkPolicy](t, text)
}

func parsePod(t testing.TB, text string) *v1.Pod { return parse[v1.Pod](t, text) }

// parse reads an API object from YAML.
func parse[T any](t testing.TB, text string) *T {
	t.Helper()
	var out T
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return &out
}
