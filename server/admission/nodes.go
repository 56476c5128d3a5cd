package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"k8s.io/apiserver/pkg/admission"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/names"
)

// NodesPlugin is the name of the plugin Nodes, as in --disable-admission-plugins.
const NodesPlugin = "UmiakNodes"

// What a Node may hold when its own kubelet or agent makes it longer. A kubelet reports 50 images with 5 names each by
// default, and all of them where nodeStatusMaxImages is -1.
const (
	maxAddresses  = 64
	maxLabels     = 512
	maxConditions = 256
	maxVolumes    = 4096
	maxImageNames = 4096
)

// Annotations with which an administrator overwrites the address at which flannel's nodes are reached.
var overwrites = []string{"flannel.alpha.coreos.com/public-ip-overwrite", "flannel.alpha.coreos.com/public-ipv6-overwrite"}

// Addresses decides about the addresses of nodes.
type Addresses interface {
	// Foreign says why an address cannot be a node's at all; nil if it can.
	Foreign(ctx context.Context, node string, addr netip.Addr) error
	// Refuse says why a node may not report an address in its status; nil if it may. An external one may be a router's.
	Refuse(ctx context.Context, node string, addr netip.Addr, external bool) error
}

// Annotations in which flannel's nodes say at which address they are reached.
var publicIPs = []string{"flannel.alpha.coreos.com/public-ip", "flannel.alpha.coreos.com/public-ipv6"}

// Nodes refuses what a kubelet or an agent writes into its own Node and can use against others: pod ranges, which the
// cluster gives, addresses that are not its own, and lists without end. Upstream's NodeRestriction has refused changes of other Nodes before.
type Nodes struct {
	*admission.Handler
	addresses Addresses
}

var _ admission.ValidationInterface = (*Nodes)(nil)

// NewNodes makes the plugin.
func NewNodes(addresses Addresses) *Nodes {
	return &Nodes{Handler: admission.NewHandler(admission.Create, admission.Update), addresses: addresses}
}

// Name is NodesPlugin.
func (*Nodes) Name() string { return NodesPlugin }

// Register adds the plugin to those that an API server can have.
func (n *Nodes) Register(plugins *admission.Plugins) {
	plugins.Register(NodesPlugin, func(io.Reader) (admission.Interface, error) { return n, nil })
}

// Validate implements admission.ValidationInterface.
func (n *Nodes) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != api.Resource("nodes") || !isNode(a) {
		return nil
	}
	node, ok := a.GetObject().(*api.Node)
	if !ok {
		return nil // a subresource that is no Node
	}
	old, ok := a.GetOldObject().(*api.Node)
	if !ok {
		old = &api.Node{}
	}
	for _, check := range []func(now, old *api.Node) error{bounded, sameRanges, sameOverwrites} {
		if err := check(node, old); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	if err := n.ownAddresses(ctx, node, old); err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// isNode reports whether the request is a kubelet's or an agent's.
func isNode(a admission.Attributes) bool {
	groups := a.GetUserInfo().GetGroups()
	return slices.Contains(groups, names.NodesGroup) || slices.Contains(groups, names.AgentsGroup)
}

// bounded refuses lists that would keep every reader of Nodes busy. What others have made longer may stay so.
func bounded(now, old *api.Node) error {
	for _, l := range []struct {
		what          string
		has, had, max int
	}{
		{"addresses", len(now.Status.Addresses), len(old.Status.Addresses), maxAddresses},
		{"names of images", imageNames(now), imageNames(old), maxImageNames},
		{"labels", len(now.Labels), len(old.Labels), maxLabels},
		{"conditions", len(now.Status.Conditions), len(old.Status.Conditions), maxConditions},
		{"volumes in use", len(now.Status.VolumesInUse), len(old.Status.VolumesInUse), maxVolumes},
		{"volumes attached", len(now.Status.VolumesAttached), len(old.Status.VolumesAttached), maxVolumes},
	} {
		if l.has > l.max && l.has > l.had {
			return fmt.Errorf("a node may report %d %s and no more, this one reports %d", l.max, l.what, l.has)
		}
	}
	return nil
}

func imageNames(n *api.Node) int {
	sum := 0
	for _, i := range n.Status.Images {
		sum += max(1, len(i.Names))
	}
	return sum
}

// sameRanges refuses pod ranges that a node gives itself.
func sameRanges(now, old *api.Node) error {
	if !slices.Equal(now.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		return errors.New("a node may not set its spec.podCIDR: the cluster gives it the range of its pods")
	}
	return nil
}

// sameOverwrites refuses addresses of the overlay that a node gives itself.
func sameOverwrites(now, old *api.Node) error {
	for _, key := range append(slices.Clone(overwrites), names.ConfirmedAddresses) {
		if now.Annotations[key] != old.Annotations[key] {
			return fmt.Errorf("a node may not set the annotation %s, an administrator may", key)
		}
	}
	return nil
}

// ownAddresses refuses addresses that are not the node's. Those it has had stay: what has been admitted is not judged again at
// each heartbeat.
func (n *Nodes) ownAddresses(ctx context.Context, now, old *api.Node) error {
	had := map[api.NodeAddress]bool{}
	for _, a := range old.Status.Addresses {
		had[a] = true
	}
	for _, a := range now.Status.Addresses {
		external := a.Type == api.NodeExternalIP
		if had[a] || a.Type != api.NodeInternalIP && !external {
			continue
		}
		err := onAddress(a.Address, func(ip netip.Addr) error { return n.addresses.Refuse(ctx, now.Name, ip, external) })
		if err != nil {
			return fmt.Errorf("node %s may not have the address %.64s: %w", now.Name, a.Address, err)
		}
	}
	for i, key := range publicIPs {
		v := now.Annotations[key]
		if v == "" || v == old.Annotations[key] || v == old.Annotations[overwrites[i]] {
			continue
		}
		// It may be the address of the interface that flannel-iface names, which the node does not register.
		if err := onAddress(v, func(ip netip.Addr) error { return n.addresses.Foreign(ctx, now.Name, ip) }); err != nil {
			return fmt.Errorf("annotation %s: node %s may not have the address %.64s: %w", key, now.Name, v, err)
		}
	}
	return nil
}

func onAddress(text string, f func(netip.Addr) error) error {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		return errors.New("it is not an IP address")
	}
	return f(ip.Unmap())
}
