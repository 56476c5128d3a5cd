package upgrades

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/upgrades"
)

// Client creates and follows Upgrades for the commands.
type Client struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
}

// errFailed is Follow's error for an Upgrade that has failed.
var errFailed = errors.New("the upgrade has failed")

// Get returns an Upgrade, nil if there is none of that name.
func (c Client) Get(ctx context.Context, name string) (*upgrades.Upgrade, error) {
	o, err := c.Dynamic.Resource(upgrades.Resource).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Upgrade %s: %w", name, err)
	}
	return upgrades.FromUnstructured(o)
}

// Want creates an Upgrade or changes an existing one. A failed one is tried again.
func (c Client) Want(ctx context.Context, name string, spec upgrades.Spec) error {
	u, err := c.Get(ctx, name)
	if err != nil {
		return err
	}
	resource := c.Dynamic.Resource(upgrades.Resource)
	if u == nil {
		o, err := (&upgrades.Upgrade{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}).ToUnstructured()
		if err == nil {
			unstructured.RemoveNestedField(o.Object, "status")
			_, err = resource.Create(ctx, o, metav1.CreateOptions{})
		}
		return wrap("create", name, err)
	}
	if spec.Attempt = u.Spec.Attempt; u.Status.Phase == upgrades.Failed {
		spec.Attempt++
	}
	if reflect.DeepEqual(spec, u.Spec) {
		return nil
	}
	u.Spec = spec
	o, err := u.ToUnstructured()
	if err == nil {
		_, err = resource.Update(ctx, o, metav1.UpdateOptions{})
	}
	return wrap("change", name, err)
}

func wrap(what, name string, err error) error {
	if err != nil {
		return fmt.Errorf("%s Upgrade %s: %w", what, name, err)
	}
	return nil
}

// Follow calls show with every new status until the Upgrade is complete or has failed. It tolerates that servers are
// away.
func (c Client) Follow(ctx context.Context, name string, show func(upgrades.Status)) error {
	var last upgrades.Status
	for ctx.Err() == nil {
		w, err := c.Dynamic.Resource(upgrades.Resource).Watch(ctx,
			metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()})
		if err == nil {
			over, e := each(w, func(u *upgrades.Upgrade) (bool, error) {
				if s := u.Status; u.Status.ObservedGeneration == u.Generation && s != last {
					show(s)
					last = s
				}
				switch {
				case last.ObservedGeneration != u.Generation:
				case last.Phase == upgrades.Failed:
					return true, errFailed
				case last.Phase == upgrades.Complete:
					return true, nil
				}
				return false, nil
			})
			if over {
				return e
			}
		} else if !away(err) {
			return wrap("watch", name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return ctx.Err()
}

// away reports whether an error means that the server restarts, as opposed to an answer. A starting API server also
// answers Forbidden until it has read its roles.
func away(err error) bool {
	var s apierrors.APIStatus
	return !errors.As(err, &s) || apierrors.IsServiceUnavailable(err) || apierrors.IsTooManyRequests(err) ||
		apierrors.IsInternalError(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsForbidden(err)
}

func each(w watch.Interface, f func(*upgrades.Upgrade) (bool, error)) (over bool, err error) {
	defer w.Stop()
	for e := range w.ResultChan() {
		o, ok := e.Object.(*unstructured.Unstructured)
		if !ok || e.Type == watch.Error || e.Type == watch.Bookmark {
			continue
		}
		if e.Type == watch.Deleted {
			return true, fmt.Errorf("the Upgrade %s was deleted", o.GetName())
		}
		u, err := upgrades.FromUnstructured(o)
		if err != nil {
			return true, err
		}
		if over, err := f(u); over {
			return true, err
		}
	}
	return false, nil
}

// Planned is a node in an upgrade's order.
type Planned struct {
	Node    string `json:"node"`
	Role    string `json:"role"`
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
	Done    bool   `json:"done"`
}

// Preview returns the nodes in the order of their upgrade, and the status after the first step, without any change.
func (c Client) Preview(ctx context.Context, spec upgrades.Spec) ([]Planned, upgrades.Status, error) {
	info, err := c.Client.Discovery().ServerVersion()
	if err != nil {
		return nil, upgrades.Status{}, fmt.Errorf("get the API server's version: %w", err)
	}
	list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, upgrades.Status{}, fmt.Errorf("list nodes: %w", err)
	}
	var nodes []*corev1.Node
	for i := range list.Items {
		nodes = append(nodes, &list.Items[i])
	}
	u := &upgrades.Upgrade{Spec: spec}
	var out []Planned
	for _, n := range inOrder(Selected(u, nodes)) {
		role := "agent"
		if isServer(n) {
			role = "server"
		}
		out = append(out, Planned{n.Name, role, version(n), ready(n), version(n) == spec.Version})
	}
	return out, Next(u, nodes, info.GitVersion, nil, time.Now()).Status, nil
}

// inOrder sorts nodes: servers first, then by name.
func inOrder(nodes []*corev1.Node) []*corev1.Node {
	slices.SortFunc(nodes, func(a, b *corev1.Node) int {
		return cmp.Or(compare(isServer(b), isServer(a)), cmp.Compare(a.Name, b.Name))
	})
	return nodes
}
