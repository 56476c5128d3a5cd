package dns

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	api "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Index names on the shared informers; prefixed, as others may add theirs.
const (
	byServiceIP  = "umiak-dns/service-ip"
	byService    = "umiak-dns/service"
	byEndpointIP = "umiak-dns/endpoint-ip"
	byPodIP      = "umiak-dns/pod-ip"
)

// cluster is what DNS reads of the cluster: the shared informers' stores with the few indexes that
// questions need. A Service by name needs none, it is the store's own key.
type cluster struct {
	services, slices, namespaces cache.SharedIndexInformer
	modified                     atomic.Int64
}

func newCluster(f informers.SharedInformerFactory) (*cluster, error) {
	c := &cluster{
		services:   f.Core().V1().Services().Informer(),
		slices:     f.Discovery().V1().EndpointSlices().Informer(),
		namespaces: f.Core().V1().Namespaces().Informer(),
	}
	c.modified.Store(time.Now().Unix())
	// The serial of the zone's SOA record is the time of the last change, as upstream has it.
	touched := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.modified.Store(time.Now().Unix()) },
		UpdateFunc: func(_, _ any) { c.modified.Store(time.Now().Unix()) },
		DeleteFunc: func(any) { c.modified.Store(time.Now().Unix()) },
	}
	_, err := c.services.AddEventHandler(touched)
	_, errS := c.slices.AddEventHandler(touched)
	return c, errors.Join(err, errS,
		c.services.AddIndexers(cache.Indexers{byServiceIP: func(obj any) ([]string, error) {
			s, ok := obj.(*api.Service)
			if !ok {
				return nil, nil
			}
			if len(s.Spec.ClusterIPs) > 0 {
				return headlessNone(s.Spec.ClusterIPs), nil
			}
			return headlessNone([]string{s.Spec.ClusterIP}), nil
		}}),
		c.slices.AddIndexers(cache.Indexers{
			byService: func(obj any) ([]string, error) {
				s, ok := obj.(*discovery.EndpointSlice)
				if !ok {
					return nil, nil
				}
				return []string{object.EndpointsKey(s.Labels[discovery.LabelServiceName], s.Namespace)}, nil
			},
			byEndpointIP: func(obj any) ([]string, error) {
				s, ok := obj.(*discovery.EndpointSlice)
				if !ok {
					return nil, nil
				}
				var ips []string
				for _, e := range s.Endpoints {
					if e.Conditions.Ready == nil || *e.Conditions.Ready {
						ips = append(ips, e.Addresses...)
					}
				}
				return ips, nil
			},
		}))
}

func headlessNone(ips []string) []string {
	if len(ips) > 0 && (ips[0] == api.ClusterIPNone || ips[0] == "") {
		return nil
	}
	return ips
}

// Synced reports whether the first lists have arrived.
func (c *cluster) Synced() bool {
	return c.services.HasSynced() && c.slices.HasSynced() && c.namespaces.HasSynced()
}

// view is the cluster as one `kubernetes` stanza of a Corefile sees it. It takes the place of CoreDNS's
// own controller, which would list and watch the same objects over a connection of its own and keep
// them a second time. Objects are converted when they are asked for: a name's few, not the cluster's.
type view struct {
	*cluster
	pods        cache.SharedIndexInformer // only with `pods verified`
	selector    labels.Selector           // labels
	nsSelector  labels.Selector           // namespace_labels
	noEndpoints bool
	zonal       bool
}

var errNone = errors.New("not found")

func get[T any](s cache.Store, key string) (T, bool) {
	obj, ok, err := s.GetByKey(key)
	t, is := obj.(T)
	return t, ok && is && err == nil
}

func (v *view) selected(l map[string]string) bool {
	return v.selector == nil || v.selector.Matches(labels.Set(l))
}

func (v *view) service(s *api.Service) *object.Service {
	if !v.selected(s.Labels) {
		return nil
	}
	shallow := *s // the conversion empties what it is given
	o, err := object.ToService(&shallow)
	if err != nil {
		return nil
	}
	return o.(*object.Service)
}

func (v *view) endpoints(s *discovery.EndpointSlice) *object.Endpoints {
	if v.noEndpoints || !v.selected(s.Labels) {
		return nil
	}
	convert := object.EndpointSliceToEndpoints
	if v.zonal {
		convert = object.EndpointSliceToEndpointsWithZones
	}
	shallow := *s
	o, err := convert(&shallow)
	if err != nil {
		return nil
	}
	return o.(*object.Endpoints)
}

func collect[In, Out any](objs []any, convert func(In) *Out) []*Out {
	var out []*Out
	for _, o := range objs {
		if in, ok := o.(In); ok {
			if c := convert(in); c != nil {
				out = append(out, c)
			}
		}
	}
	return out
}

func indexed(i cache.SharedIndexInformer, index, key string) []any {
	objs, err := i.GetIndexer().ByIndex(index, key)
	if err != nil {
		return nil
	}
	return objs
}

func (v *view) SvcIndex(key string) []*object.Service {
	name, ns, _ := strings.Cut(key, ".") // neither may hold a dot
	s, ok := get[*api.Service](v.services.GetStore(), ns+"/"+name)
	if !ok {
		return nil
	}
	return collect([]any{s}, v.service)
}

func (v *view) ServiceList() []*object.Service {
	return collect(v.services.GetStore().List(), v.service)
}
func (v *view) EndpointsList() []*object.Endpoints {
	return collect(v.slices.GetStore().List(), v.endpoints)
}
func (v *view) SvcIndexReverse(ip string) []*object.Service {
	return collect(indexed(v.services, byServiceIP, ip), v.service)
}
func (v *view) EpIndex(key string) []*object.Endpoints {
	return collect(indexed(v.slices, byService, key), v.endpoints)
}
func (v *view) EpIndexReverse(ip string) []*object.Endpoints {
	return collect(indexed(v.slices, byEndpointIP, ip), v.endpoints)
}

func (v *view) PodIndex(ip string) []*object.Pod {
	if v.pods == nil {
		return nil
	}
	return collect(indexed(v.pods, byPodIP, ip), func(p *api.Pod) *object.Pod {
		if p.DeletionTimestamp != nil || !v.selected(p.Labels) {
			return nil
		}
		shallow := *p
		o, err := object.ToPod(&shallow)
		if err != nil {
			return nil
		}
		return o.(*object.Pod)
	})
}

func (v *view) GetNamespaceByName(name string) (*object.Namespace, error) {
	ns, ok := get[*api.Namespace](v.namespaces.GetStore(), name)
	if !ok || v.nsSelector != nil && !v.nsSelector.Matches(labels.Set(ns.Labels)) {
		return nil, errNone
	}
	return &object.Namespace{Version: ns.ResourceVersion, Name: ns.Name}, nil
}

func (v *view) HasSynced() bool {
	return v.Synced() &&
		(v.pods == nil || v.pods.HasSynced())
}
func (v *view) Modified(kubernetes.ModifiedMode) int64      { return v.modified.Load() }
func (v *view) Run()                                        {} // the informers are not ours to run
func (v *view) Stop() error                                 { return nil }
func (v *view) SvcExtIndexReverse(string) []*object.Service { return nil } // for a plugin that is not linked

// Multicluster zones are refused when the Corefile is read.
func (v *view) SvcImportIndex(string) []*object.ServiceImport            { return nil }
func (v *view) ServiceImportList() []*object.ServiceImport               { return nil }
func (v *view) McEpIndex(string) []*object.MultiClusterEndpoints         { return nil }
func (v *view) GetNodeByName(context.Context, string) (*api.Node, error) { return nil, errNone }

func podIPs(obj any) ([]string, error) {
	p, ok := obj.(*api.Pod)
	if !ok {
		return nil, nil
	}
	ips := make([]string, 0, len(p.Status.PodIPs))
	for _, ip := range p.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	return ips, nil
}

func selector(args []string) (labels.Selector, error) {
	ls, err := meta.ParseToLabelSelector(strings.Join(args, " "))
	if err != nil {
		return nil, err
	}
	return meta.LabelSelectorAsSelector(ls)
}
