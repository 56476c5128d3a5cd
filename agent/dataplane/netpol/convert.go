package netpol

import (
	"fmt"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// policyOf is a NetworkPolicy as the rules know it. What the API server would not have let in allows
// nothing.
func policyOf(in *networking.NetworkPolicy) (rules.Policy, error) {
	out := rules.Policy{Namespace: in.Namespace, Name: in.Name}
	var err error
	if out.Pods, err = metav1.LabelSelectorAsSelector(&in.Spec.PodSelector); err != nil {
		return out, fmt.Errorf("read podSelector of NetworkPolicy %s/%s: %w", in.Namespace, in.Name, err)
	}
	// Before policyTypes was invented, all policies were for ingress.
	out.Isolates = [2]bool{rules.Ingress: true, rules.Egress: len(in.Spec.Egress) > 0}
	if len(in.Spec.PolicyTypes) > 0 {
		out.Isolates = [2]bool{}
		for _, t := range in.Spec.PolicyTypes {
			switch t {
			case networking.PolicyTypeIngress:
				out.Isolates[rules.Ingress] = true
			case networking.PolicyTypeEgress:
				out.Isolates[rules.Egress] = true
			}
		}
	}
	for _, r := range in.Spec.Ingress {
		out.Rules[rules.Ingress] = append(out.Rules[rules.Ingress], ruleOf(r.From, r.Ports))
	}
	for _, r := range in.Spec.Egress {
		out.Rules[rules.Egress] = append(out.Rules[rules.Egress], ruleOf(r.To, r.Ports))
	}
	return out, nil
}

func ruleOf(peers []networking.NetworkPolicyPeer, ports []networking.NetworkPolicyPort) rules.Rule {
	var out rules.Rule
	for _, p := range peers {
		out.Peers = append(out.Peers, peerOf(p))
	}
	for _, p := range ports {
		out.Ports = append(out.Ports, portOf(p))
	}
	return out
}

func peerOf(p networking.NetworkPolicyPeer) rules.Peer {
	nobody := rules.Peer{Pods: labels.Nothing()}
	if p.IPBlock != nil {
		block, err := netip.ParsePrefix(p.IPBlock.CIDR)
		if err != nil {
			return nobody
		}
		out := rules.Peer{Block: block.Masked()}
		for _, s := range p.IPBlock.Except {
			e, err := netip.ParsePrefix(s)
			if err != nil {
				return nobody
			}
			out.Except = append(out.Except, e.Masked())
		}
		return out
	}
	var out rules.Peer
	var err error
	if p.NamespaceSelector == nil && p.PodSelector == nil {
		return nobody
	}
	if p.NamespaceSelector != nil {
		if out.Namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return nobody
		}
	}
	if p.PodSelector != nil {
		if out.Pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return nobody
		}
	}
	return out
}

func portOf(p networking.NetworkPolicyPort) rules.Port {
	out := rules.Port{Protocol: ruleset.TCP, From: 0, To: 65535}
	if p.Protocol != nil {
		out.Protocol = protocol(*p.Protocol)
	}
	switch {
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		out.Name, out.To = p.Port.StrVal, 0
	default:
		out.From, out.To = uint16(p.Port.IntVal), uint16(p.Port.IntVal)
		if p.EndPort != nil {
			out.To = uint16(*p.EndPort)
		}
	}
	return out
}

func protocol(p v1.Protocol) uint8 {
	switch p {
	case v1.ProtocolUDP:
		return ruleset.UDP
	case v1.ProtocolSCTP:
		return ruleset.SCTP
	}
	return ruleset.TCP
}

// configHash is the UID of what the kubelet read from a file, on the Pod that stands for it.
const configHash = "kubernetes.io/config.hash"

// podInfo holds the fields of a Pod that policies need.
type podInfo struct {
	namespace, name, uid string
	labels               map[string]string
	addrs                []netip.Addr
	ports                []rules.NamedPort
	node                 string
	ending               bool
}

// podOf returns the podInfo of a Pod, nil if no policy can apply to it.
func podOf(p *v1.Pod) *podInfo {
	if p.Spec.HostNetwork || p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed {
		return nil
	}
	out := &podInfo{namespace: p.Namespace, name: p.Name, uid: string(p.UID), labels: p.Labels,
		node: p.Spec.NodeName, ending: p.DeletionTimestamp != nil}
	// What the kubelet read from a file has another UID there than the Pod that stands for it.
	if file := p.Annotations[configHash]; file != "" {
		out.uid = file
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.addrs = append(out.addrs, a)
		}
	}
	named := func(c v1.Container) {
		for _, port := range c.Ports {
			if port.Name != "" {
				out.ports = append(out.ports, rules.NamedPort{Name: port.Name,
					Protocol: protocol(port.Protocol), Port: uint16(port.ContainerPort)})
			}
		}
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			named(c)
		}
	}
	for _, c := range p.Spec.Containers {
		named(c)
	}
	return out
}

// pod returns the rules' pod on a node. announced are addresses that the API server may not have yet.
func (p *podInfo) pod(node string, announced []netip.Addr) rules.Pod {
	return rules.Pod{Namespace: p.namespace, Name: p.name, Labels: p.labels, Ports: p.ports, Local: p.node == node,
		Addrs: append(slices.Clone(p.addrs), announced...), Announced: len(announced) > 0, Ending: p.ending}
}
