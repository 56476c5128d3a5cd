package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// podStatus refuses a Pod status with addresses that do not belong to the kubelet's node. Addresses that the Pod
// already has are not checked again: its status is still updated after the node's ranges or addresses have changed.
func (k *Kubelets) podStatus(ctx context.Context, a admission.Attributes) error {
	now, ok := a.GetObject().(*api.Pod)
	old, isUpdate := a.GetOldObject().(*api.Pod)
	if !ok || !isUpdate {
		return nil
	}
	pods := added(podIPs(now), podIPs(old))
	hosts := added(hostIPs(now), hostIPs(old))
	if old.Spec.HostNetwork {
		hosts, pods = append(hosts, pods...), nil
	}
	if len(pods)+len(hosts) == 0 {
		return nil
	}
	name, ok := strings.CutPrefix(a.GetUserInfo().GetName(), wellknown.NodeUserPrefix)
	if !ok {
		return errors.New("the user is not a node")
	}
	node, err := k.node(ctx, name)
	if err != nil {
		return err
	}
	for _, text := range hosts {
		if err := onAddress(text, func(ip netip.Addr) error { return k.ofHost(ctx, node, ip) }); err != nil {
			return fmt.Errorf("node %s may not report the host address %.64s: %w", name, text, err)
		}
	}
	for _, text := range pods {
		if err := onAddress(text, func(ip netip.Addr) error { return k.ofPods(ctx, node, ip) }); err != nil {
			return fmt.Errorf("node %s may not report the address %.64s of a Pod: %w", name, text, err)
		}
	}
	return nil
}

// node returns the Node of a kubelet, from the API if the cached one has no pod ranges yet.
func (k *Kubelets) node(ctx context.Context, name string) (*corev1.Node, error) {
	if !k.WaitForReady() {
		return nil, errNotYet
	}
	if n, err := k.nodes.Get(name); err == nil && (len(n.Spec.PodCIDRs) > 0 || k.otherIPAM) {
		return n, nil
	}
	n, err := k.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get the Node: %w", err)
	}
	return n, nil
}

// ofHost returns an error if an address is not the node's. Addresses in the Node's status have been admitted.
func (k *Kubelets) ofHost(ctx context.Context, node *corev1.Node, ip netip.Addr) error {
	for _, a := range node.Status.Addresses {
		had, err := netip.ParseAddr(a.Address)
		if err == nil && had.Unmap() == ip && (a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP) {
			return nil
		}
	}
	return k.addresses.Refuse(ctx, node.Name, ip, true)
}

// ofPods returns an error if an address cannot be that of a Pod on the node: with umiak's network it must be in the
// node's pod ranges; with another network, it must not belong to the system.
func (k *Kubelets) ofPods(ctx context.Context, node *corev1.Node, ip netip.Addr) error {
	if k.otherIPAM {
		return k.addresses.System(ctx, node.Name, ip)
	}
	for _, text := range node.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil && p.Contains(ip) {
			return nil
		}
	}
	return fmt.Errorf("it is not in the node's pod ranges (%s)", strings.Join(node.Spec.PodCIDRs, ", "))
}

// added returns the addresses in now that are not in old.
func added(now, old []string) []string {
	return slices.DeleteFunc(now, func(a string) bool { return a == "" || slices.Contains(old, a) })
}

func podIPs(p *api.Pod) []string {
	out := []string{p.Status.PodIP}
	for _, a := range p.Status.PodIPs {
		out = append(out, a.IP)
	}
	return out
}

func hostIPs(p *api.Pod) []string {
	out := []string{p.Status.HostIP}
	for _, a := range p.Status.HostIPs {
		out = append(out, a.IP)
	}
	return out
}
