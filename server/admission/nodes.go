package admission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/core/v1"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/overlaykey"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// nodesPlugin is the name of the plugin Nodes, as in --disable-admission-plugins.
const nodesPlugin = "UmiakNodes"

// Bounds of what a kubelet or agent may add to its own Node. A kubelet reports 50 images with 5 names each by default,
// and all images if nodeStatusMaxImages is -1.
const (
	maxAddresses  = 64
	maxLabels     = 512
	maxConditions = 256
	maxVolumes    = 4096
	maxImageNames = 4096
)

// Addresses decides about the addresses of nodes and of their Pods. Each method returns nil for an address that is
// allowed.
type Addresses interface {
	// Foreign returns why an address cannot be a node's at all.
	Foreign(ctx context.Context, node string, addr netip.Addr) error
	// Refuse returns why a node may not report an address in its status. An external address may be a router's.
	Refuse(ctx context.Context, node string, addr netip.Addr, external bool) error
	// RefuseName returns why a node may not have a name besides its own.
	RefuseName(node, name string) error
	// System returns why an address cannot be that of a Pod on a node where another network gives Pods their addresses.
	System(ctx context.Context, node string, addr netip.Addr) error
}

// families hold the annotations in which flannel's nodes say how they are reached.
var families = []overlaykey.Family{overlaykey.V4, overlaykey.V6}

// Nodes refuses values that a kubelet or an agent writes to its own Node and that could harm others: pod ranges, which
// the cluster assigns, addresses and names of other machines, another node's overlay key or provider ID, and unbounded
// lists. Upstream's NodeRestriction has refused changes of other Nodes before.
type Nodes struct {
	*admission.Handler
	addresses Addresses
	nodes     listers.NodeLister
}

var (
	_ admission.ValidationInterface                = (*Nodes)(nil)
	_ admission.InitializationValidator            = (*Nodes)(nil)
	_ initializer.WantsExternalKubeInformerFactory = (*Nodes)(nil)
)

// NewNodes returns the plugin.
func NewNodes(addresses Addresses) *Nodes {
	return &Nodes{Handler: admission.NewHandler(admission.Create, admission.Update), addresses: addresses}
}

// Name returns nodesPlugin.
func (*Nodes) Name() string { return nodesPlugin }

// Register adds the plugin to the API server's plugins.
func (n *Nodes) Register(plugins *admission.Plugins) {
	plugins.Register(nodesPlugin, func(io.Reader) (admission.Interface, error) { return NewNodes(n.addresses), nil })
}

// SetExternalKubeInformerFactory implements initializer.WantsExternalKubeInformerFactory.
func (n *Nodes) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	nodes := f.Core().V1().Nodes()
	n.nodes = nodes.Lister()
	n.SetReadyFunc(nodes.Informer().HasSynced)
}

// ValidateInitialization implements admission.InitializationValidator.
func (n *Nodes) ValidateInitialization() error {
	if n.nodes == nil {
		return errors.New(nodesPlugin + " has no informer of nodes")
	}
	return nil
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
	if err := errors.Join(n.ownKey(node, old), n.ownProviderID(node, old)); err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

// isNode reports whether the request is a kubelet's or an agent's.
func isNode(a admission.Attributes) bool {
	groups := a.GetUserInfo().GetGroups()
	return slices.Contains(groups, wellknown.NodesGroup) || slices.Contains(groups, wellknown.AgentsGroup)
}

// bounded refuses lists that are too long for every reader of Nodes. A list that others have made longer may stay.
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
			return fmt.Errorf("a node may report at most %d %s, this one reports %d", l.max, l.what, l.has)
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

// sameRanges refuses pod ranges set by the node.
func sameRanges(now, old *api.Node) error {
	if !slices.Equal(now.Spec.PodCIDRs, old.Spec.PodCIDRs) {
		return errors.New("a node may not set its spec.podCIDR: the cluster assigns its pod range")
	}
	return nil
}

// sameOverwrites refuses overlay addresses set by the node.
func sameOverwrites(now, old *api.Node) error {
	for _, key := range []string{overlaykey.V4.Overwrite, overlaykey.V6.Overwrite, wellknown.ConfirmedAddresses} {
		if now.Annotations[key] != old.Annotations[key] {
			return fmt.Errorf("a node may not set the annotation %s; only an administrator may", key)
		}
	}
	return nil
}

// ownAddresses refuses addresses that are not the node's. Addresses that the Node already has are not checked again at
// each heartbeat.
func (n *Nodes) ownAddresses(ctx context.Context, now, old *api.Node) error {
	had := map[api.NodeAddress]bool{}
	for _, a := range old.Status.Addresses {
		had[a] = true
	}
	for _, a := range now.Status.Addresses {
		external := a.Type == api.NodeExternalIP
		switch {
		case had[a]:
			continue
		case a.Type != api.NodeInternalIP && !external:
			// The API server may reach a node without addresses by its name, which could be an address of another kind.
			if a.Address == now.Name {
				continue
			}
			err := errors.New("its only name is its own")
			if a.Type != api.NodeHostName {
				err = n.addresses.RefuseName(now.Name, a.Address)
			}
			if err != nil {
				return fmt.Errorf("node %s may not have the %s %.64q: %w", now.Name, a.Type, a.Address, err)
			}
			continue
		}
		err := onAddress(
			a.Address, func(ip netip.Addr) error { return n.addresses.Refuse(ctx, now.Name, ip, external) })
		if err != nil {
			return fmt.Errorf("node %s may not have the address %.64s: %w", now.Name, a.Address, err)
		}
	}
	for _, f := range families {
		key := f.Public
		v := now.Annotations[key]
		if v == "" || v == old.Annotations[key] || v == old.Annotations[f.Overwrite] {
			continue
		}
		// It may be the address of the interface that flannel-iface names, which the node does not register.
		if err := onAddress(
			v, func(ip netip.Addr) error { return n.addresses.Foreign(ctx, now.Name, ip) }); err != nil {
			return fmt.Errorf("annotation %s: node %s may not have the address %.64s: %w", key, now.Name, v, err)
		}
	}
	return nil
}

// ownKey refuses a key of the overlay that another Node has: what is sent to that one would go to this one. What has
// been admitted stays, as above. The first Node that has a key keeps it, so that a node cannot take a younger one's.
func (n *Nodes) ownKey(now, old *api.Node) error {
	for _, f := range families {
		same := func(key string) bool { return now.Annotations[key] == old.Annotations[key] }
		if now.Annotations[f.Public] == "" || same(overlaykey.Type) && same(f.Data) && same(f.Public) {
			continue
		}
		end, err := overlaykey.Parse(now.Annotations[overlaykey.Type], now.Annotations[f.Data])
		if err != nil {
			return fmt.Errorf("annotation %s: %w", f.Data, err)
		}
		if end.Key == "" {
			continue
		}
		all, err := n.all()
		if err != nil {
			return err
		}
		for _, o := range all {
			theirs, err := overlaykey.Parse(o.Annotations[overlaykey.Type], o.Annotations[f.Data])
			if o.Name == now.Name || err != nil || theirs.Key != end.Key ||
				overlaykey.Shares(now.Annotations[f.Public], o.Annotations[f.Public], internal(now)) {
				continue
			}
			return fmt.Errorf(
				"annotation %s: node %s may not have the key of node %s; if it is the same machine, delete that Node",
				f.Data, now.Name, o.Name)
		}
	}
	return nil
}

// ownProviderID refuses the provider ID that another Node has: a cloud controller would take this node for that
// machine. The API server itself refuses to change a provider ID that is set.
func (n *Nodes) ownProviderID(now, old *api.Node) error {
	id := now.Spec.ProviderID
	if id == "" || id == old.Spec.ProviderID {
		return nil
	}
	all, err := n.all()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Name != now.Name && sameMachine(o.Spec.ProviderID, id) {
			return fmt.Errorf("node %s may not have the provider ID %.256q of node %s; if it is the same machine, "+
				"delete that Node", now.Name, id, o.Name)
		}
	}
	return nil
}

// sameMachine reports whether two provider IDs (SCHEME://PATH) name one machine in any case, as Azure reads them.
func sameMachine(a, b string) bool {
	schemeA, machineA := machineOf(a)
	schemeB, machineB := machineOf(b)
	return schemeA == schemeB && slices.Equal(machineA, machineB)
}

// machineOf returns the scheme of a provider ID and the part of its path by which cloud controllers find the machine,
// both in lower case. That is the last element, as in aws:///ZONE/INSTANCE. A number is unique only within what the two
// elements before it name: azure:///…/virtualMachineScaleSets/SET/virtualMachines/0, proxmox://REGION/100.
func machineOf(id string) (scheme string, machine []string) {
	scheme, path, ok := strings.Cut(strings.ToLower(id), "://")
	if !ok {
		scheme, path = "", scheme
	}
	machine = strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	parts := 1
	if n := len(machine); n > 0 && strings.Trim(machine[n-1], "0123456789") == "" {
		parts = 3
	}
	return scheme, machine[max(0, len(machine)-parts):]
}

// all returns all Nodes.
func (n *Nodes) all() ([]*corev1.Node, error) {
	if !n.WaitForReady() {
		return nil, errors.New("the server is starting, try again")
	}
	all, err := n.nodes.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	return all, nil
}

// internal returns a node's internal addresses.
func internal(n *api.Node) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == api.NodeInternalIP {
			out = append(out, ip.Unmap())
		}
	}
	return out
}

func onAddress(text string, f func(netip.Addr) error) error {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" {
		return errors.New("not an IP address")
	}
	return f(ip.Unmap())
}
