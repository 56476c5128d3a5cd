package ownnode

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/umiak-io/umiak/internal/wellknown"
)

// Mark gives this server's Node the role by which people, and software made for other distributions, recognize
// servers. A kubelet may not set it. It runs until ctx ends.
func (n *Node) Mark(ctx context.Context, ready func()) error {
	ready() // the Node comes when the agent has joined
	name := n.cfg.Name
	client, err := n.cfg.Clients.Client("umiak-node-role", 0)
	if err != nil {
		return err
	}
	lw := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "",
		fields.OneTermEqualSelector(metav1.ObjectNameField, name))
	var marked bool
	_, err = watchtools.UntilWithSync(ctx, lw, &corev1.Node{}, nil, func(e watch.Event) (bool, error) {
		node, ok := e.Object.(*corev1.Node)
		if ok {
			_, marked = node.Labels[wellknown.ServerRole]
		}
		return ok && e.Type != watch.Deleted, nil
	})
	if err == nil && !marked {
		patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:"true"}}}`, wellknown.ServerRole)
		_, err = client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("mark Node %s as a server: %w", name, err)
	}
	<-ctx.Done()
	return nil
}
