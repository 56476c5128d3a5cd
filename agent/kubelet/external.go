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

// Without a cloud provider the kubelet removes from its Node, on every status update, the addresses that it does not
// determine itself. The clients below hide those of some types from the kubelet; the agent adds them.

// hiding is a client whose Nodes have no addresses of some types.
type hiding struct {
	kubernetes.Interface
	types []v1.NodeAddressType
}

func (c hiding) CoreV1() corev1.CoreV1Interface { return hidingCore{c.Interface.CoreV1(), c.types} }

type hidingCore struct {
	corev1.CoreV1Interface
	types []v1.NodeAddressType
}

func (c hidingCore) Nodes() corev1.NodeInterface {
	return hidingNodes{c.CoreV1Interface.Nodes(), c.types}
}

type hidingNodes struct {
	corev1.NodeInterface
	types []v1.NodeAddressType
}

func (n hidingNodes) Get(ctx context.Context, name string, o metav1.GetOptions) (*v1.Node, error) {
	node, err := n.NodeInterface.Get(ctx, name, o)
	return n.hide(node), err
}

func (n hidingNodes) List(ctx context.Context, o metav1.ListOptions) (*v1.NodeList, error) {
	list, err := n.NodeInterface.List(ctx, o)
	if list != nil {
		for i := range list.Items {
			n.hide(&list.Items[i])
		}
	}
	return list, err
}

func (n hidingNodes) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := n.NodeInterface.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if node, ok := e.Object.(*v1.Node); ok {
			n.hide(node)
		}
		return e, true
	}), nil
}

// hide removes the addresses of the types from a Node, which the caller owns.
func (n hidingNodes) hide(node *v1.Node) *v1.Node {
	if node != nil {
		node.Status.Addresses = slices.DeleteFunc(node.Status.Addresses,
			func(a v1.NodeAddress) bool { return slices.Contains(n.types, a.Type) })
	}
	return node
}
