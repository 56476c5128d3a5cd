package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Explanation describes what a node does for one Service, and why.
type Explanation struct {
	Service string `json:"service"`
	Type    string `json:"type"`
	Node    string `json:"node"`
	// Remarks are about the Service as a whole.
	Remarks []string          `json:"remarks,omitempty"`
	Ports   []PortExplanation `json:"ports,omitempty"`
}

// PortExplanation is about a port of the Service in one address family.
type PortExplanation struct {
	Name      string                `json:"name"`
	Family    string                `json:"family"`
	Rules     []RuleExplanation     `json:"rules"`
	Endpoints []EndpointExplanation `json:"endpoints"`
}

// RuleExplanation is one thing that the tables hold.
type RuleExplanation struct {
	rules.Fact
	// Elements are what it is in the kernel, as nft would print them; Wrong what differs there.
	Elements []string `json:"elements"`
	Wrong    []string `json:"wrong,omitempty"`
}

// EndpointExplanation is one endpoint, and whether this node uses it.
type EndpointExplanation struct {
	Address string `json:"address"`
	Used    bool   `json:"used"`
	Why     string `json:"why"`
	// Connections are those that the kernel follows now from the Service to this endpoint.
	Connections int `json:"connections"`
}

// Explain says what the node of this name does for a Service. What should be comes from the API, by the code that the
// proxy itself runs, and what is from the kernel. guard is the running proxy's, nil where that is not known.
func Explain(ctx context.Context, client kubernetes.Interface, node string, svc types.NamespacedName,
	guard *Guard) (*Explanation, error) {
	s, err := client.CoreV1().Services(svc.Namespace).Get(ctx, svc.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read Service: %w", err)
	}
	n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read Node: %w", err)
	}
	slices, err := client.DiscoveryV1().EndpointSlices(svc.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: svc.Name}).String()})
	if err != nil {
		return nil, fmt.Errorf("read EndpointSlices: %w", err)
	}
	conn, err := netfilter.Dial()
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing can be lost
	return explain(s, n, slices.Items, guard, kernel{conn})
}

// state is what there is on the node: the kernel, or what a test says.
type state interface {
	inspect(cfg rules.Config, elems []rules.Elem) (map[rules.Elem]string, error)
	flows(f ruleset.Family) ([]flow, error)
}

// flow is a connection that was sent to an endpoint.
type flow struct {
	protocol uint8
	to       netip.AddrPort // as the client called it
	endpoint netip.AddrPort
}

type kernel struct{ conn *netfilter.Conn }

func (k kernel) inspect(cfg rules.Config, elems []rules.Elem) (map[rules.Elem]string, error) {
	t, err := nft.NewTable(k.conn, cfg)
	if err != nil {
		return nil, err
	}
	return t.Inspect(elems)
}

func (kernel) flows(f ruleset.Family) ([]flow, error) {
	list, err := netlink.ConntrackTableList(netlink.ConntrackTable, netlink.InetFamily(f))
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	var out []flow
	for _, c := range list {
		to, _ := netip.AddrFromSlice(c.Forward.DstIP)
		ep, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
		out = append(out, flow{c.Forward.Protocol, netip.AddrPortFrom(to.Unmap(), c.Forward.DstPort),
			netip.AddrPortFrom(ep.Unmap(), c.Reverse.SrcPort)})
	}
	return out, nil
}

func explain(s *v1.Service, n *v1.Node, slices []discovery.EndpointSlice, guard *Guard, have state) (*Explanation,
	error) {
	out := &Explanation{Service: s.Namespace + "/" + s.Name, Type: string(s.Spec.Type), Node: n.Name,
		Remarks: remarks(s)}
	node, ips := thisNode(n)
	node.guard = guard
	var errs []error
	if cost := costOf(s); cost > mostOfService {
		out.Remarks, s = append(out.Remarks, tooCostly(nameOf(s), cost)), trimmed(s)
	}
	for _, fam := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		if !hasFamily(fam, ips) {
			continue
		}
		f := newFamily(fam, Config{NodeName: n.Name}, &Proxy{})
		f.services.Update(nil, s)
		for i := range slices {
			if slices[i].Labels[apis.LabelServiceProxyName] == "" {
				f.endpoints.observe(&slices[i], false)
			}
		}
		f.ports.Update(f.services)
		f.endpoints.update(f.eps)
		ports, err := f.explain(node, have)
		out.Ports = append(out.Ports, ports...)
		out.Remarks = append(out.Remarks, f.refusals()...)
		errs = append(errs, err)
		out.Remarks = append(out.Remarks, heldRemarks(s, node, ips, fam)...)
	}
	return out, errors.Join(errs...)
}

// thisNode returns the node's properties.
func thisNode(n *v1.Node) (nodeInfo, []netip.Addr) {
	host := &hostPorts{held: map[hostPort]bool{}}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == v1.NodeInternalIP {
			host.addrs = append(host.addrs, ip.Unmap())
		}
	}
	for _, p := range strings.Split(n.Annotations[wellknown.HostPorts], ",") {
		var hp hostPort
		if _, err := fmt.Sscanf(strings.Replace(p, "/", " ", 1), "%d %s", &hp.port, &hp.protocol); err == nil {
			host.held[hp] = true
		}
	}
	node := nodeInfo{name: n.Name, topology: map[string]string{}, host: host}
	if zone, ok := n.Labels[v1.LabelTopologyZone]; ok {
		node.topology[v1.LabelTopologyZone] = zone
	}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil {
			node.podCIDRs = append(node.podCIDRs, p.Masked())
		}
	}
	return node, host.addrs
}

func remarks(s *v1.Service) []string {
	var out []string
	switch {
	case s.Spec.Type == v1.ServiceTypeExternalName:
		out = append(out, fmt.Sprintf("ExternalName: DNS answers with %s; nodes have no rules for it",
			s.Spec.ExternalName))
	case s.Spec.ClusterIP == v1.ClusterIPNone:
		out = append(out, "headless: DNS answers with the endpoints' addresses; nodes have no rules for it")
	case s.Labels[apis.LabelServiceProxyName] != "":
		out = append(out, fmt.Sprintf("label %s=%s: somebody else serves it", apis.LabelServiceProxyName,
			s.Labels[apis.LabelServiceProxyName]))
	case len(s.Spec.Selector) == 0:
		out = append(out, "no selector: its EndpointSlices are written by somebody else than the cluster")
	}
	if s.Spec.PublishNotReadyAddresses {
		out = append(out, "publishNotReadyAddresses: endpoints count as ready at once")
	}
	if s.Spec.TrafficDistribution != nil {
		out = append(out, "trafficDistribution "+*s.Spec.TrafficDistribution+
			": near endpoints are preferred, where the cluster gives hints")
	}
	for _, c := range s.Status.Conditions {
		if c.Status != metav1.ConditionTrue || c.Reason != "Served" {
			out = append(out, fmt.Sprintf("%s: %s: %s", c.Type, c.Reason, c.Message))
		}
	}
	if s.Spec.Type == v1.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) == 0 {
		out = append(out, "LoadBalancer: no address has been given to it")
	}
	return out
}

// heldRemarks tell of load balancer addresses that this node leaves to a program of the host.
func heldRemarks(s *v1.Service, node nodeInfo, own []netip.Addr, fam ruleset.Family) []string {
	var out []string
	for _, p := range s.Spec.Ports {
		hp := hostPort{cmp.Or(p.Protocol, v1.ProtocolTCP), uint16(p.Port)}
		if s.Spec.Type == v1.ServiceTypeLoadBalancer && node.host.held[hp] {
			for _, a := range own {
				if fam.Has(a) {
					out = append(out, fmt.Sprintf("a program of this host listens on port %s of %s and keeps it", hp,
						a))
				}
			}
		}
	}
	return out
}

// explain describes all ports that the trackers have.
func (f *family) explain(node nodeInfo, have state) ([]PortExplanation, error) {
	var out []PortExplanation
	flows, err := have.flows(f.cfg.Family)
	errs := []error{err}
	for name, port := range f.ports {
		sp := f.set(name, port, node)
		p := PortExplanation{Name: cmp.Or(name.Port, fmt.Sprint(port.Port())), Family: string(f.name)}
		facts := f.builder.Explain(sp.Name)
		var elems []rules.Elem
		for _, fact := range facts {
			elems = append(elems, fact.Elems...)
		}
		wrong, err := have.inspect(f.cfg, elems)
		errs = append(errs, err)
		for _, fact := range facts {
			r := RuleExplanation{Fact: fact}
			for _, e := range fact.Elems {
				r.Elements = append(r.Elements, f.cfg.Line(e))
				if w := wrong[e]; w != "" {
					r.Wrong = append(r.Wrong, f.cfg.Line(e)+": "+w)
				}
			}
			p.Rules = append(p.Rules, r)
		}
		for _, ep := range f.eps[name] {
			x := EndpointExplanation{Address: ep.String()}
			x.Used, x.Why = why(ep, port, sp, f.eps[name], node)
			for _, fl := range flows {
				x.Connections += through(fl, sp, ep.String())
			}
			p.Endpoints = append(p.Endpoints, x)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b PortExplanation) int { return strings.Compare(a.Name+a.Family, b.Name+b.Family) })
	return out, errors.Join(errs...)
}

// through is 1 if a connection went through the Service port to this endpoint.
func through(fl flow, sp rules.ServicePort, endpoint string) int {
	if fl.protocol != sp.Protocol || fl.endpoint.String() != endpoint || fl.to == fl.endpoint {
		return 0
	}
	addrs := append(append([]netip.Addr{sp.ClusterIP}, sp.ExternalIPs...), sp.LoadBalancerIPs...)
	if fl.to.Port() == sp.Port && slices.Contains(addrs, fl.to.Addr()) || sp.NodePort != 0 &&
		fl.to.Port() == sp.NodePort {
		return 1
	}
	return 0
}

// why reports whether this node sends connections to an endpoint, and the reason.
func why(ep kubeproxy.Endpoint, port kubeproxy.ServicePort, sp rules.ServicePort, all []kubeproxy.Endpoint,
	node nodeInfo) (bool, string) {
	here := "on another node"
	if ep.IsLocal() {
		here = "on this node"
	}
	is := func(list []netip.AddrPort) bool {
		return slices.ContainsFunc(list, func(a netip.AddrPort) bool { return a.String() == ep.String() })
	}
	cluster, local := is(sp.Cluster), is(sp.Local)
	state := "ready"
	switch {
	case ep.IsTerminating() && ep.IsServing():
		state = "terminating, still serving"
	case ep.IsTerminating():
		state = "terminating"
	case !ep.IsReady():
		state = "not ready"
	}
	words := []string{state, here}
	if h := ep.NodeHints(); len(h) > 0 {
		words = append(words, "hint for nodes "+strings.Join(h.UnsortedList(), " "))
	}
	if h := ep.ZoneHints(); len(h) > 0 {
		zones := h.UnsortedList()
		slices.Sort(zones)
		words = append(words, "hint for zones "+strings.Join(zones, " "))
	}
	switch {
	case (cluster || local) && ep.IsTerminating():
		words = append(words, "used because no other one is ready")
	case cluster && local, cluster && !port.UsesLocalEndpoints(), local && !port.UsesClusterEndpoints():
	case cluster:
		words = append(words, "used only where the traffic policy is Cluster")
	case local:
		words = append(words, "used only where the traffic policy is Local")
	case ep.IsTerminating() && ep.IsServing():
		words = append(words, "others are ready")
	case ep.IsReady() && !port.UsesClusterEndpoints() && !ep.IsLocal():
		words = append(words, "the traffic policy is Local")
	case ep.IsReady() && port.UsesClusterEndpoints():
		words = append(words, fmt.Sprintf("meant for others: this node is %q in zone %q", node.name,
			node.topology[v1.LabelTopologyZone]))
	}
	return cluster || local, strings.Join(words, ", ")
}

// Print writes it for people.
func (e *Explanation) Print(w io.Writer) error {
	fmt.Fprintf(w, "Service %s, %s, as node %s serves it\n", e.Service, e.Type, e.Node)
	for _, r := range e.Remarks {
		fmt.Fprintf(w, "  %s\n", r)
	}
	for _, p := range e.Ports {
		fmt.Fprintf(w, "\nPort %s, %s\n", p.Name, p.Family)
		t := output.NewTable(w)
		for _, r := range p.Rules {
			fmt.Fprintf(t, "  %s\t%s\n", r.Where, r.Words)
			for _, x := range r.Wrong {
				fmt.Fprintf(t, "  \tNOT SO IN THE KERNEL: %s\n", x)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
		if len(p.Endpoints) == 0 {
			fmt.Fprintln(w, "  no endpoints")
			continue
		}
		t = output.NewTable(w, "  ENDPOINT", "USED", "CONNECTIONS", "WHY")
		for _, ep := range p.Endpoints {
			used := "no"
			if ep.Used {
				used = "yes"
			}
			fmt.Fprintf(t, "  %s\t%s\t%d\t%s\n", ep.Address, used, ep.Connections, ep.Why)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// Wrong reports whether the kernel does not hold what it should.
func (e *Explanation) Wrong() bool {
	for _, p := range e.Ports {
		for _, r := range p.Rules {
			if len(r.Wrong) > 0 {
				return true
			}
		}
	}
	return false
}
