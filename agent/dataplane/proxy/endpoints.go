package proxy

import (
	"hash/maphash"
	"maps"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
)

// endpointTracker is kube-proxy's tracker of EndpointSlices, many times: it walks through all Services to find
// those that changed, which took most of a sync at 10,000. Each Service has its place in one of the trackers,
// and only those are asked that were told something. It is safe for concurrent use.
type endpointTracker struct {
	seed   maphash.Seed
	shards []*kubeproxy.EndpointsChangeTracker

	mu    sync.Mutex
	dirty sets.Set[*kubeproxy.EndpointsChangeTracker]
}

// endpointShards keeps a walk short for as many Services as a cluster may have, 10,000 by Kubernetes' limits.
const endpointShards = 256

func newEndpointTracker(family v1.IPFamily, node string) *endpointTracker {
	t := &endpointTracker{seed: maphash.MakeSeed(), dirty: sets.Set[*kubeproxy.EndpointsChangeTracker]{}}
	for range endpointShards {
		t.shards = append(t.shards, kubeproxy.NewEndpointsChangeTracker(family, node, nil, nil))
	}
	return t
}

// observe records a slice, or that it is gone, and reports whether anything has to be done.
func (t *endpointTracker) observe(s *discovery.EndpointSlice, gone bool) bool {
	service := types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discovery.LabelServiceName]}
	shard := t.shards[maphash.Comparable(t.seed, service)%endpointShards]
	// Under the lock, so that what update takes out of the tracker is not marked again afterwards.
	t.mu.Lock()
	defer t.mu.Unlock()
	if !shard.EndpointSliceUpdate(s, gone) {
		return false
	}
	t.dirty.Insert(shard)
	return true
}

// update brings what was noted since the last time into eps. It returns the Services that it was noted for,
// and when their endpoints changed.
func (t *endpointTracker) update(eps kubeproxy.EndpointsMap) (services sets.Set[types.NamespacedName],
	changed map[types.NamespacedName][]time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	services, changed = sets.Set[types.NamespacedName]{}, map[types.NamespacedName][]time.Time{}
	for shard := range t.dirty {
		r := eps.Update(shard)
		maps.Copy(services, r.UpdatedServices)
		maps.Copy(changed, r.LastChangeTriggerTimes)
	}
	clear(t.dirty)
	return services, changed
}
