package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// Taints is what a Joiner also is that sets the taints of the node's settings: a node may not change those of its own Node.
type Taints interface {
	// SetTaints gives the Node these taints and takes away those that it gave earlier; others stay.
	SetTaints(ctx context.Context, node string, taints []corev1.Taint) error
}

// runMarks brings the Node to what the settings say of its labels, taints and external addresses. The kubelet sets labels and
// taints only when it registers, and external addresses never.
func (a *Agent) runMarks(ctx context.Context, ready func()) error {
	k, m := a.kubelet.Load(), a.member
	if err := a.setLabels(ctx, k.Labels()); err != nil {
		return fmt.Errorf("node-label: %w", err)
	}
	if t, ok := a.joiner.(Taints); ok {
		if err := t.SetTaints(ctx, a.name, k.Taints()); err != nil {
			return fmt.Errorf("node-taint: %w", err)
		}
	}
	ready()
	external := config.Texts(a.cfg.NodeExternalIP)
	if len(external) == 0 { // the kubelet takes away what there was
		<-ctx.Done()
		return nil
	}
	return a.keepExternalIPs(ctx, m.informers.Core().V1().Nodes().Informer(), external)
}

// setLabels gives the Node these labels, and takes away those that settings gave it earlier, as long as nobody has changed them.
func (a *Agent) setLabels(ctx context.Context, want map[string]string) error {
	nodes := a.member.node.CoreV1().Nodes()
	node, err := nodes.Get(ctx, a.name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Node %s: %w", a.name, err)
	}
	patch, err := labelPatch(node, want)
	if err != nil || patch == nil {
		return err
	}
	if _, err := nodes.Patch(ctx, a.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("label Node %s: %w", a.name, err)
	}
	return nil
}

// labelPatch returns the merge patch that setLabels sends, nil where there is nothing to change. The annotation SetLabels records
// which labels are the settings'.
func labelPatch(node *corev1.Node, want map[string]string) ([]byte, error) {
	had := map[string]string{}
	if text := node.Annotations[wellknown.SetLabels]; text != "" {
		if err := json.Unmarshal([]byte(text), &had); err != nil {
			had = map[string]string{} // somebody has edited it: what it named is theirs now
		}
	}
	labels := map[string]any{}
	for k, v := range had {
		if _, still := want[k]; !still && node.Labels[k] == v {
			labels[k] = nil
		}
	}
	for k, v := range want {
		if is, ok := node.Labels[k]; !ok || is != v {
			labels[k] = v
		}
	}
	if len(labels) == 0 && maps.Equal(had, want) {
		return nil, nil
	}
	meta := map[string]any{"labels": labels, "annotations": map[string]any{wellknown.SetLabels: nil}}
	if len(want) > 0 {
		text, err := json.Marshal(want)
		if err != nil {
			return nil, fmt.Errorf("encode labels: %w", err)
		}
		meta["annotations"] = map[string]any{wellknown.SetLabels: string(text)}
	}
	return json.Marshal(map[string]any{"metadata": meta})
}

// keepExternalIPs adds external addresses to the Node's status whenever they are not there: the kubelet, which does not see them
// (kubelet.Config.HideExternalIPs), writes the list anew when another address changes.
func (a *Agent) keepExternalIPs(ctx context.Context, nodes cache.SharedIndexInformer, external []string) error {
	wake := make(chan struct{}, 1)
	seen := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	reg, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, o any) { seen(o) }})
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", a.name, err)
	}
	defer nodes.RemoveEventHandler(reg) //nolint:errcheck // fails only for a stranger's
	a.member.informers.Start(ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		o, ok, err := nodes.GetStore().GetByKey(a.name)
		if err != nil || !ok {
			continue
		}
		node, ok := o.(*corev1.Node)
		if !ok {
			continue
		}
		next := withExternal(node.Status.Addresses, external)
		if reflect.DeepEqual(next, node.Status.Addresses) {
			continue
		}
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": next}})
		if err != nil {
			return fmt.Errorf("encode addresses: %w", err)
		}
		if _, err := a.member.node.CoreV1().Nodes().Patch(ctx, a.name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil && ctx.Err() == nil {
			return fmt.Errorf("node-external-ip: write the addresses of Node %s: %w", a.name, err)
		}
	}
}

// withExternal returns a Node's addresses with these external ones, behind the internal ones.
func withExternal(there []corev1.NodeAddress, external []string) []corev1.NodeAddress {
	var out []corev1.NodeAddress
	for _, a := range there {
		if a.Type != corev1.NodeExternalIP {
			out = append(out, a)
		}
	}
	at := slices.IndexFunc(out, func(a corev1.NodeAddress) bool { return a.Type != corev1.NodeInternalIP })
	if at < 0 {
		at = len(out)
	}
	for _, ip := range slices.Backward(external) {
		out = slices.Insert(out, at, corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: ip})
	}
	return out
}
