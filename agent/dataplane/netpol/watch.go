package netpol

import (
	"context"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// sink takes objects from a reflector and keeps none: what is needed of them is in the rules.
type sink struct {
	set     func(obj any)
	remove  func(namespace, name string)
	replace func(objs []any)
	slim    cache.TransformFunc
}

var _ cache.TransformingStore = sink{}

func (s sink) Add(obj any) error    { s.set(obj); return nil }
func (s sink) Update(obj any) error { s.set(obj); return nil }
func (s sink) Resync() error        { return nil }

func (s sink) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err == nil {
		s.remove(m.GetNamespace(), m.GetName())
	}
	return err
}

func (s sink) Replace(objs []any, _ string) error { s.replace(objs); return nil }

// Transformer drops what is not needed while a list is read.
func (s sink) Transformer() cache.TransformFunc { return s.slim }

// follow delivers all objects of a kind, and their changes, to a sink until ctx ends.
func follow[L runtime.Object](ctx context.Context, client kubernetes.Interface, kind runtime.Object, fields string,
	list func(context.Context, metav1.ListOptions) (L, error),
	watches func(context.Context, metav1.ListOptions) (watch.Interface, error), to sink) {
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fields
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fields
			return watches(ctx, o)
		},
	}, client)
	cache.NewReflectorWithOptions(lw, kind, to, cache.ReflectorOptions{Name: "network policy"}).RunWithContext(ctx)
}

func (p *Policies) followPolicies(ctx context.Context) {
	c := p.cfg.Client.NetworkingV1().NetworkPolicies("")
	follow(ctx, p.cfg.Client, &networking.NetworkPolicy{}, "", c.List, c.Watch, sink{
		set:     func(obj any) { p.setPolicies(false, obj) },
		remove:  p.removePolicy,
		replace: func(objs []any) { p.setPolicies(true, objs...) },
	})
}

func (s *session) followPods(ctx context.Context) {
	c := s.p.cfg.Client.CoreV1().Pods("")
	// Pods of the nodes' own network have no policies and stand for no peers; those that have ended have
	// no address. The API server sends neither.
	const fields = "spec.hostNetwork=false,status.phase!=Succeeded,status.phase!=Failed"
	follow(ctx, s.p.cfg.Client, &v1.Pod{}, fields, c.List, c.Watch, sink{
		set:     func(obj any) { s.setPods(false, obj) },
		remove:  s.removePod,
		replace: func(objs []any) { s.setPods(true, objs...) },
		slim:    slimPod,
	})
}

func (s *session) followNamespaces(ctx context.Context) {
	c := s.p.cfg.Client.CoreV1().Namespaces()
	follow(ctx, s.p.cfg.Client, &v1.Namespace{}, "", c.List, c.Watch, sink{
		set:     func(obj any) { s.setNamespaces(false, obj) },
		remove:  func(_, name string) { s.removeNamespace(name) },
		replace: func(objs []any) { s.setNamespaces(true, objs...) },
	})
}

// slimPod removes the fields of a Pod that podOf does not read.
func slimPod(obj any) (any, error) {
	p, ok := obj.(*v1.Pod)
	if !ok {
		return obj, nil
	}
	out := &v1.Pod{}
	out.Namespace, out.Name, out.UID, out.ResourceVersion, out.Labels, out.DeletionTimestamp = p.Namespace, p.Name, p.UID, p.ResourceVersion, p.Labels, p.DeletionTimestamp
	if hash := p.Annotations[configHash]; hash != "" {
		out.Annotations = map[string]string{configHash: hash}
	}
	out.Spec.NodeName, out.Spec.HostNetwork = p.Spec.NodeName, p.Spec.HostNetwork
	out.Status.Phase, out.Status.PodIPs = p.Status.Phase, p.Status.PodIPs
	slim := func(in []v1.Container) []v1.Container {
		var res []v1.Container
		for _, c := range in {
			if len(c.Ports) > 0 {
				res = append(res, v1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
			}
		}
		return res
	}
	out.Spec.Containers, out.Spec.InitContainers = slim(p.Spec.Containers), slim(p.Spec.InitContainers)
	return out, nil
}
