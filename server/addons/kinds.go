package addons

import (
	"context"
	"strings"
	"sync"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// kinds wakes manifests that wait for an unknown kind when a CustomResourceDefinition or an APIService of its API group
// is created or changed. It watches these only while a manifest waits.
type kinds struct {
	client metadata.Interface
	wake   func(id string)

	mu      sync.Mutex
	waiting map[string][]string // API groups by manifest
	stop    context.CancelFunc  // ends the watches; nil while none run
	wg      sync.WaitGroup
}

// sources are the resources that define kinds. Their objects' names end in the API group, after the first dot.
var sources = []schema.GroupVersionResource{
	{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"},
	{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

func newKinds(c metadata.Interface, wake func(id string)) *kinds {
	return &kinds{client: c, wake: wake, waiting: map[string][]string{}}
}

// await replaces the API groups that a manifest waits for; an empty list ends its wait.
func (k *kinds) await(id string, groups []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(groups) > 0 {
		k.waiting[id] = groups
	} else {
		delete(k.waiting, id)
	}
	switch {
	case len(k.waiting) == 0 && k.stop != nil:
		k.stop()
		k.stop = nil
	case len(k.waiting) > 0 && k.stop == nil:
		ctx, cancel := context.WithCancel(context.Background())
		k.stop = cancel
		for _, s := range sources {
			k.watch(ctx, s)
		}
	}
}

// watch follows one source until ctx ends. It keeps only the objects' names.
func (k *kinds) watch(ctx context.Context, source schema.GroupVersionResource) {
	notify := func(obj any) {
		if o, ok := obj.(*meta.PartialObjectMetadata); ok {
			k.wakeWaiting(o.Name)
		}
	}
	_, c := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: listWatch(k.client.Resource(source), ""),
		ObjectType:    &meta.PartialObjectMetadata{},
		Transform: func(obj any) (any, error) {
			o, ok := obj.(*meta.PartialObjectMetadata)
			if !ok {
				return obj, nil
			}
			small := &meta.PartialObjectMetadata{TypeMeta: o.TypeMeta}
			small.Name, small.UID, small.ResourceVersion = o.Name, o.UID, o.ResourceVersion
			return small, nil
		},
		Handler: cache.ResourceEventHandlerFuncs{AddFunc: notify, UpdateFunc: func(_, obj any) { notify(obj) }},
	})
	k.wg.Go(func() { c.RunWithContext(ctx) })
}

// wakeWaiting wakes the manifests that wait for the API group in a source object's name.
func (k *kinds) wakeWaiting(name string) {
	_, group, _ := strings.Cut(name, ".")
	k.mu.Lock()
	var ids []string
	for id, groups := range k.waiting {
		for _, g := range groups {
			if g == group {
				ids = append(ids, id)
				break
			}
		}
	}
	k.mu.Unlock()
	for _, id := range ids {
		k.wake(id)
	}
}

func (k *kinds) close() {
	k.mu.Lock()
	if k.stop != nil {
		k.stop()
		k.stop = nil
	}
	k.mu.Unlock()
	k.wg.Wait()
}
