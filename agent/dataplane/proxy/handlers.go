package proxy

import (
	"cmp"
	"net/netip"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/proxy/apis"
)

// register connects the informers with the trackers. Handlers only note what changed.
func (p *Proxy) register() error {
	add := func(inf cache.SharedIndexInformer, h cache.ResourceEventHandlerFuncs) error {
		reg, err := inf.AddEventHandler(h)
		if err == nil {
			p.synced = append(p.synced, reg.HasSyncedChecker())
		}
		return err
	}
	service := func(o any) *v1.Service {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		s, _ := o.(*v1.Service)
		if s == nil || s.Labels[apis.LabelServiceProxyName] != "" {
			return nil // another service proxy serves it
		}
		return s
	}
	update := func(before, after *v1.Service) {
		if before == nil && after == nil {
			return
		}
		if s := cmp.Or(after, before); p.host.service(types.NamespacedName{Namespace: s.Namespace, Name: s.Name},
			after) {
			p.changed()
		}
		p.updateService(before, after)
	}
	err := add(p.cfg.Informers.Core().V1().Services().Informer(), cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { update(nil, service(o)) },
		UpdateFunc: func(o, n any) { update(service(o), service(n)) },
		DeleteFunc: func(o any) { update(service(o), nil) },
	})
	if err != nil {
		return err
	}
	slice := func(o any) *discovery.EndpointSlice {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		s, _ := o.(*discovery.EndpointSlice)
		if s == nil || s.Labels[apis.LabelServiceProxyName] != "" {
			return nil
		}
		if _, headless := s.Labels[v1.IsHeadlessService]; headless {
			return nil
		}
		return s
	}
	updateSlice := func(s *discovery.EndpointSlice, gone bool) {
		if s == nil {
			return
		}
		for _, f := range p.families {
			if f.endpoints.observe(s, gone) {
				p.changed()
			}
		}
	}
	err = add(p.cfg.Informers.Discovery().V1().EndpointSlices().Informer(), cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { updateSlice(slice(o), false) },
		UpdateFunc: func(o, n any) {
			before, after := slice(o), slice(n)
			// It may have been given to another Service, or be ours no longer.
			if before != nil && (after == nil ||
				before.Labels[discovery.LabelServiceName] != after.Labels[discovery.LabelServiceName]) {
				updateSlice(before, true)
			}
			updateSlice(after, false)
		},
		DeleteFunc: func(o any) { updateSlice(slice(o), true) },
	})
	if err != nil {
		return err
	}
	return add(p.cfg.Informers.Core().V1().Nodes().Informer(), cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { p.node(o) },
		UpdateFunc: func(_, n any) { p.node(n) },
	})
}

// node takes what matters from our own Node: its topology, and the addresses of the pods that run here.
func (p *Proxy) node(o any) {
	n, _ := o.(*v1.Node)
	if n == nil || n.Name != p.cfg.NodeName {
		return
	}
	p.host.node(n)
	topology := map[string]string{}
	if zone, ok := n.Labels[v1.LabelTopologyZone]; ok {
		topology[v1.LabelTopologyZone] = zone
	}
	var cidrs []netip.Prefix
	for _, s := range n.Spec.PodCIDRs {
		if c, err := netip.ParsePrefix(s); err == nil {
			cidrs = append(cidrs, c.Masked())
		}
	}
	p.mu.Lock()
	same := len(cidrs) == len(p.podCIDRs) && topology[v1.LabelTopologyZone] == p.topology[v1.LabelTopologyZone]
	for i := range cidrs {
		same = same && cidrs[i] == p.podCIDRs[i]
	}
	if !same {
		p.topology, p.podCIDRs, p.nodeSeen = topology, cidrs, true
	}
	p.mu.Unlock()
	if !same {
		p.changed()
	}
}
