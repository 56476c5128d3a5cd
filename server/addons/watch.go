package addons

import (
	"context"
	"fmt"
	"sync"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// watches follows the objects with umiak's label, with one metadata watch per resource type in use. Of each object it
// keeps only the name, umiak's label and the hash of the fields that umiak manages.
type watches struct {
	client metadata.Interface
	notify func(kind schema.GroupKind, namespace, name, id, fields string)
	ctx    context.Context //nolint:containedctx // the lifetime of all watches, ended by close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu sync.Mutex
	m  map[schema.GroupVersionResource]*kindWatch
}

type kindWatch struct {
	store  cache.Store
	synced <-chan struct{}
}

const fieldsAnnotation = "fields"

func newWatches(c metadata.Interface, notify func(schema.GroupKind, string, string, string, string)) *watches {
	ctx, cancel := context.WithCancel(context.Background())
	return &watches{client: c, notify: notify, ctx: ctx, cancel: cancel,
		m: map[schema.GroupVersionResource]*kindWatch{}}
}

func (w *watches) close() {
	w.cancel()
	w.wg.Wait()
}

// ensure watches a resource type and returns once the watch has synced.
func (w *watches) ensure(ctx context.Context, r resource, kind schema.GroupKind) error {
	w.mu.Lock()
	k := w.m[r.GroupVersionResource]
	if k == nil {
		k = w.start(r, kind)
		w.m[r.GroupVersionResource] = k
	}
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	select {
	case <-k.synced:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("watch %s: %w", r.Resource, ctx.Err())
	}
}

func (w *watches) start(r resource, kind schema.GroupKind) *kindWatch {
	api := w.client.Resource(r.GroupVersionResource)
	notify := func(obj any, gone bool) {
		if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = d.Obj
		}
		if o, ok := obj.(*meta.PartialObjectMetadata); ok {
			fields := o.Annotations[fieldsAnnotation]
			if gone {
				fields = ""
			}
			w.notify(kind, o.Namespace, o.Name, o.Labels[labelManifest], fields)
		}
	}
	store, c := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: listWatch(api, labelManifest),
		ObjectType:    &meta.PartialObjectMetadata{},
		Transform: func(obj any) (any, error) {
			o, ok := obj.(*meta.PartialObjectMetadata)
			if !ok {
				return obj, nil
			}
			small := &meta.PartialObjectMetadata{TypeMeta: o.TypeMeta}
			small.Name, small.Namespace, small.UID, small.ResourceVersion = o.Name, o.Namespace, o.UID,
				o.ResourceVersion
			small.Labels = map[string]string{labelManifest: o.Labels[labelManifest]}
			fields := o.Annotations[fieldsAnnotation]
			if len(o.ManagedFields) > 0 { // an object may be transformed twice
				fields = ownedFields(o)
			}
			small.Annotations = map[string]string{fieldsAnnotation: fields}
			return small, nil
		},
		Handler: cache.ResourceEventHandlerFuncs{
			// No AddFunc: the caller of ensure reads the store after the initial list.
			UpdateFunc: func(_, obj any) { notify(obj, false) },
			DeleteFunc: func(obj any) { notify(obj, true) },
		},
	})
	w.wg.Go(func() { c.RunWithContext(w.ctx) })
	return &kindWatch{store: store, synced: c.HasSyncedChecker().Done()}
}

// listWatch lists and watches the metadata of the objects that a label selector selects.
func listWatch(api metadata.ResourceInterface, selector string) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o meta.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			return api.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o meta.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			return api.Watch(ctx, o)
		},
	}
}

// fields returns the hash of the fields that umiak manages in the live object, and the object's UID.
func (w *watches) fields(r resource, namespace, name string) (string, types.UID, bool) {
	w.mu.Lock()
	k := w.m[r.GroupVersionResource]
	w.mu.Unlock()
	if k == nil {
		return "", "", false
	}
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	obj, ok, err := k.store.GetByKey(key)
	if err != nil || !ok {
		return "", "", false
	}
	o := obj.(*meta.PartialObjectMetadata)
	return o.Annotations[fieldsAnnotation], o.UID, true
}
