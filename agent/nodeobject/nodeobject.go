package nodeobject

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
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// registered is the kubelet, with what it registers the node with. Its methods are called after the node is registered.
type registered interface {
	Labels() map[string]string
	Taints() []corev1.Taint
}

// Config describes the Node object.
type Config struct {
	Name     string
	Client   kubernetes.Interface      // as the node itself
	Nodes    cache.SharedIndexInformer // runs, and holds at least this Node
	Settings registered
	// SetTaints sets the taints, which a node may not do itself; nil leaves those of the registration.
	SetTaints func(ctx context.Context, node string, taints []corev1.Taint) error
	// Addresses are those that the settings add to the Node's, which are all of their types; none leaves the Node's
	// addresses to the kubelet.
	Addresses []corev1.NodeAddress
}

// Object changes this node's Node object.
type Object struct{ cfg Config }

// New returns an Object. It changes nothing before Run or Annotate.
func New(cfg Config) *Object { return &Object{cfg} }

// Run sets labels and taints, is ready then, and keeps the addresses in the Node's status until ctx ends. The node has
// to be registered.
func (o *Object) Run(ctx context.Context, ready func()) error {
	if err := o.setLabels(ctx, o.cfg.Settings.Labels()); err != nil {
		return fmt.Errorf("node-label: %w", err)
	}
	if o.cfg.SetTaints != nil {
		if err := o.cfg.SetTaints(ctx, o.cfg.Name, o.cfg.Settings.Taints()); err != nil {
			return fmt.Errorf("node-taint: %w", err)
		}
	}
	ready()
	if len(o.cfg.Addresses) == 0 { // the kubelet removes those of an earlier start
		<-ctx.Done()
		return nil
	}
	return o.keepAddresses(ctx)
}

// Annotate sets an annotation of the Node. A nil value removes it.
func (o *Object) Annotate(ctx context.Context, key string, value any) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
	if err != nil {
		return fmt.Errorf("encode annotation %s: %w", key, err)
	}
	return o.patch(ctx, body)
}

func (o *Object) patch(ctx context.Context, body []byte, subresource ...string) error {
	nodes := o.cfg.Client.CoreV1().Nodes()
	_, err := nodes.Patch(ctx, o.cfg.Name, types.MergePatchType, body, metav1.PatchOptions{}, subresource...)
	return err
}

// setLabels sets labels, and removes those that settings gave the Node earlier, unless somebody has changed them.
func (o *Object) setLabels(ctx context.Context, want map[string]string) error {
	node, err := o.cfg.Client.CoreV1().Nodes().Get(ctx, o.cfg.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Node %s: %w", o.cfg.Name, err)
	}
	patch, err := labelPatch(node, want)
	if err != nil || patch == nil {
		return err
	}
	if err := o.patch(ctx, patch); err != nil {
		return fmt.Errorf("label Node %s: %w", o.cfg.Name, err)
	}
	return nil
}

// labelPatch returns the merge patch that setLabels sends, nil if there is nothing to change. The annotation SetLabels
// records which labels come from the settings.
func labelPatch(node *corev1.Node, want map[string]string) ([]byte, error) {
	had := map[string]string{}
	if text := node.Annotations[wellknown.SetLabels]; text != "" {
		if err := json.Unmarshal([]byte(text), &had); err != nil {
			had = map[string]string{} // somebody has edited the record: the labels in it are theirs now
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

// keepAddresses adds the addresses to the Node's status whenever they are missing: the kubelet, which ignores their
// types (kubelet.Config.HiddenAddresses), writes the whole list when another address changes.
func (o *Object) keepAddresses(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	seen := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	nodes := o.cfg.Nodes
	reg, err := nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: seen, UpdateFunc: func(_, n any) { seen(n) },
	})
	if err != nil {
		return fmt.Errorf("watch Node %s: %w", o.cfg.Name, err)
	}
	defer nodes.RemoveEventHandler(reg) //nolint:errcheck // fails only for another informer's
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		found, ok, err := nodes.GetStore().GetByKey(o.cfg.Name)
		if err != nil || !ok {
			continue
		}
		node, ok := found.(*corev1.Node)
		if !ok {
			continue
		}
		next := withOwn(node.Status.Addresses, o.cfg.Addresses)
		if reflect.DeepEqual(next, node.Status.Addresses) {
			continue
		}
		patch, err := json.Marshal(map[string]any{"status": map[string]any{"addresses": next}})
		if err != nil {
			return fmt.Errorf("encode addresses: %w", err)
		}
		if err := o.patch(ctx, patch, "status"); err != nil && ctx.Err() == nil {
			return fmt.Errorf("write the addresses of Node %s: %w", o.cfg.Name, err)
		}
	}
}

// Types returns the types of addresses, each once.
func Types(addresses []corev1.NodeAddress) (out []corev1.NodeAddressType) {
	for _, a := range addresses {
		if !slices.Contains(out, a.Type) {
			out = append(out, a.Type)
		}
	}
	return out
}

// withOwn returns a Node's addresses with these instead of those of their types. They follow the internal ones.
func withOwn(addresses, own []corev1.NodeAddress) []corev1.NodeAddress {
	types := Types(own)
	var out []corev1.NodeAddress
	for _, a := range addresses {
		if !slices.Contains(types, a.Type) {
			out = append(out, a)
		}
	}
	at := slices.IndexFunc(out, func(a corev1.NodeAddress) bool { return a.Type != corev1.NodeInternalIP })
	if at < 0 {
		at = len(out)
	}
	return slices.Insert(out, at, own...)
}
