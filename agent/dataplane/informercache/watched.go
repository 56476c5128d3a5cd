package informercache

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// New returns the cache; it watches nothing before it is started. Of Nodes it has this one only: the reports of the
// others every few minutes would otherwise be sent to every node.
func New(client kubernetes.Interface, nodeName string) informers.SharedInformerFactory {
	slim := slimmer(time.Now())
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	// A factory has one informer of a kind: every later request gets this one.
	f.InformerFor(&v1.Node{}, func(c kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		inf := coreinformers.NewFilteredNodeInformer(c, resync, cache.Indexers{}, func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, nodeName).String()
		})
		_ = inf.SetTransform(slim) // fails only for one that runs
		return inf
	})
	return f
}

// Until returns a factory whose informers run until done is closed: they outlive the part of the node that has started
// them, which may be run again.
func Until(done <-chan struct{}, f informers.SharedInformerFactory) informers.SharedInformerFactory {
	return until{f, done}
}

type until struct {
	informers.SharedInformerFactory
	done <-chan struct{}
}

func (u until) Start(<-chan struct{}) { u.SharedInformerFactory.Start(u.done) }

func (u until) StartWithContext(context.Context) { u.SharedInformerFactory.Start(u.done) }

// slimmer removes fields that no part reads: managed fields, owners, annotations, a node's images. Of an EndpointSlice
// it leaves the time of the change that led to it, if that was after the start: the proxy computes from it how long a
// change took to reach the kernel.
func slimmer(start time.Time) cache.TransformFunc {
	return func(obj any) (any, error) {
		m, err := meta.Accessor(obj)
		if err != nil {
			return obj, nil // a tombstone
		}
		m.SetManagedFields(nil)
		switch o := obj.(type) {
		case *v1.Service:
			o.Annotations, o.OwnerReferences = nil, nil
		case *discovery.EndpointSlice:
			made := o.Annotations[v1.EndpointsLastChangeTriggerTime]
			o.Annotations, o.OwnerReferences, o.GenerateName, o.UID = nil, nil, "", ""
			if t, err := time.Parse(time.RFC3339Nano, made); err == nil && t.After(start) {
				o.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: made}
			}
			for i := range o.Endpoints {
				if r := o.Endpoints[i].TargetRef; r != nil {
					o.Endpoints[i].TargetRef = &v1.ObjectReference{Kind: r.Kind, Name: r.Name} // DNS can be told to use it
				}
			}
		case *v1.Node:
			o.Status.Images, o.Status.VolumesInUse, o.Status.VolumesAttached = nil, nil, nil
		}
		return obj, nil
	}
}
