package kubelet

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Without a cloud provider the kubelet removes external addresses from its Node on every status update. The clients
// below hide them from the kubelet; the agent adds them.

// withoutExternal is a client whose Nodes have no external addresses.
type withoutExternal struct{ kubernetes.Interface }

func (c withoutExternal) CoreV1() corev1.CoreV1Interface {
	return coreWithoutExternal{c.Interface.CoreV1()}
}

type coreWithoutExternal struct{ corev1.CoreV1Interface }

func (c coreWithoutExternal) Nodes() corev1.NodeInterface {
	return nodesWithoutExternal{c.CoreV1Interface.Nodes()}
}

type nodesWithoutExternal struct{ corev1.NodeInterface }

func (n nodesWithoutExternal) Get(ctx context.Context, name string, o metav1.GetOptions) (*v1.Node, error) {
	node, err := n.NodeInterface.Get(ctx, name, o)
	return hideExternal(node), err
}

func (n nodesWithoutExternal) List(ctx context.Context, o metav1.ListOptions) (*v1.NodeList, error) {
	list, err := n.NodeInterface.List(ctx, o)
	if list != nil {
		for i := range list.Items {
			hideExternal(&list.Items[i])
		}
	}
	return list, err
}

func (n nodesWithoutExternal) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := n.NodeInterface.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if node, ok := e.Object.(*v1.Node); ok {
			hideExternal(node)
		}
		return e, true
	}), nil
}

// hideExternal removes the external addresses from n, which the caller owns.
func hideExternal(n *v1.Node) *v1.Node {
	if n != nil {
		n.Status.Addresses = slices.DeleteFunc(n.Status.Addresses,
			func(a v1.NodeAddress) bool { return a.Type == v1.NodeExternalIP })
	}
	return n
}
