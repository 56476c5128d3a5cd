package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/names"
)

// runNodeRole keeps the label on this server's node by which others see that it is a server's. A kubelet may not
// set it, so it says something: nodes believe servers what the tag of an image stands for (agent/share).
func (s *Server) runNodeRole(ctx context.Context, ready func()) error {
	name, err := agent.Config{NodeName: s.cfg.NodeName}.Name()
	if err != nil {
		return err
	}
	client, err := s.client("umiak-node-role", 0)
	if err != nil {
		return err
	}
	absent := make(chan struct{}, 1)
	see := func(obj any) {
		if n, ok := obj.(*v1.Node); ok {
			if _, has := n.Labels[names.ServerLabel]; !has {
				select {
				case absent <- struct{}{}:
				default: // it will be put there anyway
				}
			}
		}
	}
	_, node := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", metav1.NamespaceAll, fields.OneTermEqualSelector(metav1.ObjectNameField, name)),
		ObjectType:    &v1.Node{},
		Handler:       cache.ResourceEventHandlerFuncs{AddFunc: see, UpdateFunc: func(_, obj any) { see(obj) }},
		Transform: func(obj any) (any, error) {
			if n, ok := obj.(*v1.Node); ok {
				return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: n.Labels}}, nil
			}
			return obj, nil
		},
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { node.RunWithContext(ctx) })
	ready()
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:""}}}`, names.ServerLabel)
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-absent:
		case <-again:
		}
		again = nil
		_, err := client.CoreV1().Nodes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil { // one that is gone comes back through absent
			s.log.Warn("cannot label this server's node, trying again", "label", names.ServerLabel, "error", err)
			again = time.After(10 * time.Second)
		}
	}
}
