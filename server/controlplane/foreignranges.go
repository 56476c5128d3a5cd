package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/umiak-io/umiak/internal/retry"
)

// Upstream's allocator of pod ranges lists all Nodes when it starts, gives up at the first range that it could not have
// given, and with it all controllers end, at every start (nodeipam/ipam.NewCIDRRangeAllocator). So where such a Node
// is, the controllers start without the allocator, and with it as soon as that Node is gone: a range cannot be changed.

// withoutAllocator returns the list of controllers to run without the allocator of pod ranges.
func withoutAllocator(controllers []string) []string {
	return slices.Concat([]string{"-" + names.NodeIpamController}, controllers)
}

// foreignNode returns a Node with a range that the allocator would refuse, and the reason; nil if there is none.
func foreignNode(ctx context.Context, client kubernetes.Interface, cluster []netip.Prefix) (*corev1.Node, string,
	error) {
	list, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, "", fmt.Errorf("look for Nodes with pod ranges outside cluster-cidr: %w", err)
	}
	for i := range list.Items {
		if why := foreignRange(list.Items[i].Spec.PodCIDRs, cluster); why != "" {
			return &list.Items[i], why, nil
		}
	}
	return nil, "", nil
}

// foreignRange returns the reason why the allocator would refuse a Node's ranges, empty if it would not.
func foreignRange(ranges []string, cluster []netip.Prefix) string {
	for i, s := range ranges {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return fmt.Sprintf("spec.podCIDRs has %.64q, which is not a range", s)
		case i >= len(cluster):
			return fmt.Sprintf("spec.podCIDRs has %s, and cluster-cidr has ranges of %d families", p, len(cluster))
		case cluster[i].Bits() > p.Bits() || !cluster[i].Contains(p.Addr()):
			return fmt.Sprintf("spec.podCIDRs has %s, which is outside cluster-cidr %s", p, cluster[i])
		}
	}
	return ""
}

// blame records an Event of the Node with the foreign range.
func (m *ControllerManager) blame(ctx context.Context, client kubernetes.Interface, n *corev1.Node, why string) {
	text := why + ": new Nodes get no pod range meanwhile, and other nodes do not reach pods there; delete this Node, it comes back with a range of the cluster's"
	m.log.Warn("a Node keeps the cluster from giving pod ranges", "node", n.Name, "why", text)
	now := metav1.Now()
	_, err := client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: n.Name + ".", Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID},
		Type:           corev1.EventTypeWarning, Reason: "ForeignPodRange", Message: text,
		Source: corev1.EventSource{Component: "umiak"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && ctx.Err() == nil {
		m.log.Warn("cannot record an Event", "node", n.Name, "error", err)
	}
}

// awaitGone returns when a Node is not there any more, or ctx ends.
func awaitGone(ctx context.Context, client kubernetes.Interface, n *corev1.Node) {
	one := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, n.Name).String()}
	for pauses := (retry.Backoff{}); ctx.Err() == nil; {
		if list, err := client.CoreV1().Nodes().List(ctx, one); err == nil {
			if len(list.Items) == 0 || list.Items[0].UID != n.UID {
				return
			}
			from := one
			from.ResourceVersion = list.ResourceVersion
			if w, err := client.CoreV1().Nodes().Watch(ctx, from); err == nil {
				for e := range w.ResultChan() {
					if e.Type == watch.Deleted {
						w.Stop()
						return
					}
				}
				w.Stop()
				pauses.Reset() // watches end after some minutes
			}
		}
		if pauses.Wait(ctx) != nil {
			return
		}
	}
}
