package apiservers

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// name is the name of the EndpointSlice that API servers publish. Other slices of the Service are ignored: a user who
// may change Services in the namespace default could add a selector, which would create slices with pods of theirs.
const name = "kubernetes"

// Of returns the addresses, as HOST:PORT, that the API servers have published, from the slices of the Service
// default/kubernetes.
func Of(slicesOf []discoveryv1.EndpointSlice) []string {
	var out []string
	for _, s := range slicesOf {
		if s.Name != name {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != "https" {
				continue
			}
			for _, e := range s.Endpoints {
				for _, a := range e.Addresses {
					out = append(out, net.JoinHostPort(a, strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Selector is the label selector of those slices, in the namespace default.
const Selector = discoveryv1.LabelServiceName + "=kubernetes"

// Follow calls changed with the addresses at first and whenever they change, until ctx ends. There may be none.
func Follow(ctx context.Context, client kubernetes.Interface, changed func([]string)) error {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(metav1.NamespaceDefault),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = Selector }))
	inf := f.Discovery().V1().EndpointSlices().Informer()
	read := func(any) {
		var all []discoveryv1.EndpointSlice
		for _, o := range inf.GetStore().List() {
			if s, ok := o.(*discoveryv1.EndpointSlice); ok {
				all = append(all, *s)
			}
		}
		changed(Of(all))
	}
	_, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: read, DeleteFunc: read, UpdateFunc: func(_, o any) { read(o) },
	})
	if err != nil {
		return fmt.Errorf("watch the servers' addresses: %w", err)
	}
	f.Start(ctx.Done())
	<-ctx.Done()
	f.Shutdown()
	return nil
}
