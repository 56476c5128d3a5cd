package balancer

import (
	"context"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/joinapi"
)

// Follow keeps the list what the cluster says it is, until ctx ends.
func (b *Balancer) Follow(ctx context.Context, client kubernetes.Interface) {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = "kubernetes.io/service-name=kubernetes" }))
	inf := f.Discovery().V1().EndpointSlices().Informer()
	read := func(any) {
		var all []discoveryv1.EndpointSlice
		for _, o := range inf.GetStore().List() {
			if s, ok := o.(*discoveryv1.EndpointSlice); ok {
				all = append(all, *s)
			}
		}
		// While nothing is there the servers are starting: what is known stays.
		if err := b.Set(joinapi.Servers(all)); err != nil {
			b.cfg.Log.Warn("cannot keep the list of servers", "error", err)
		}
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: read, DeleteFunc: read, UpdateFunc: func(_, o any) { read(o) },
	})
	if err != nil {
		b.cfg.Log.Warn("cannot follow the list of servers", "error", err)
		return
	}
	f.Start(ctx.Done())
	<-ctx.Done()
	f.Shutdown()
}
