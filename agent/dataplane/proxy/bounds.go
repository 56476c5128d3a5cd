package proxy

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What Services may cost. A port of a Service has an element for each of its external IPs, and for each range of
// loadBalancerSourceRanges with each of its load balancer's addresses. Who may write Services in one namespace must
// not be able to exhaust every node by what these give when they are multiplied.
const (
	mostOfService   = 20000
	mostOfNamespace = 50000
)

// bounds takes from Services what would cost a node too much, before anything is made of it: the trackers already keep
// external IPs and ranges for each port.
type bounds struct {
	mu    sync.Mutex
	costs map[string]map[string]int // by namespace and name, of Services that have all that they ask for
	over  map[types.NamespacedName]refusal
}

type refusal struct {
	service *v1.Service
	why     string
}

func newBounds() *bounds {
	return &bounds{costs: map[string]map[string]int{}, over: map[types.NamespacedName]refusal{}}
}

// costOf returns the number of elements that a Service's lists give when they are multiplied.
func costOf(s *v1.Service) int {
	return len(s.Spec.Ports) * (len(s.Spec.ExternalIPs) +
		max(1, len(s.Status.LoadBalancer.Ingress))*len(s.Spec.LoadBalancerSourceRanges))
}

// trim returns a Service as it may be, by what was decided last.
func (b *bounds) trim(s *v1.Service) *v1.Service {
	if s == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, over := b.over[nameOf(s)]; over {
		return trimmed(s)
	}
	return s
}

// trimmed is a Service without external IPs and without its load balancer's addresses. These are not served at all,
// rather than served to everybody.
func trimmed(s *v1.Service) *v1.Service {
	out := *s
	out.Spec.ExternalIPs, out.Spec.LoadBalancerSourceRanges, out.Status.LoadBalancer.Ingress = nil, nil, nil
	return &out
}

func nameOf(s *v1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

func tooCostly(name types.NamespacedName, cost int) string {
	return fmt.Sprintf("external IPs and load balancer of Service %s: its ports, times its external IPs and source ranges, are %d, of at most %d", name, cost, mostOfService)
}

// set decides about a Service as it is now, nil if it is gone, and reports whether the decision, or its reason, is
// another one.
func (b *bounds) set(name types.NamespacedName, s *v1.Service) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.over[name].why
	delete(b.over, name)
	all := b.costs[name.Namespace]
	delete(all, name.Name)
	cost := 0
	if s != nil {
		cost = costOf(s)
	}
	total := cost
	for _, c := range all {
		total += c
	}
	why := ""
	switch {
	case cost == 0:
	case cost > mostOfService:
		why = tooCostly(name, cost)
	case total > mostOfNamespace:
		why = fmt.Sprintf("external IPs and load balancer of Service %s: ports, times external IPs and source ranges, of its namespace's Services would be %d, of at most %d", name, total, mostOfNamespace)
	case all == nil:
		b.costs[name.Namespace] = map[string]int{name.Name: cost}
	default:
		all[name.Name] = cost
	}
	if why != "" {
		b.over[name] = refusal{s, why}
	}
	if len(b.costs[name.Namespace]) == 0 {
		delete(b.costs, name.Namespace)
	}
	return why != before
}

// fitting are those Services of a namespace, the first by name, that do not have what they ask for and could have it
// now that others have changed.
func (b *bounds) fitting(namespace string) []*v1.Service {
	b.mu.Lock()
	defer b.mu.Unlock()
	var waiting, out []*v1.Service
	for name, r := range b.over {
		if name.Namespace == namespace && costOf(r.service) <= mostOfService {
			waiting = append(waiting, r.service)
		}
	}
	slices.SortFunc(waiting, func(x, y *v1.Service) int { return strings.Compare(x.Name, y.Name) })
	total := 0
	for _, c := range b.costs[namespace] {
		total += c
	}
	for _, s := range waiting {
		if c := costOf(s); total+c <= mostOfNamespace {
			total += c
			out = append(out, s)
		}
	}
	return out
}

// refusals are the reasons, at most maxRefused.
func (b *bounds) refusals() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, r := range b.over {
		out = append(out, r.why)
	}
	slices.Sort(out)
	return out[:min(len(out), maxRefused)]
}

// updateService brings a Service to the trackers, and with it those of its namespace that fit now.
func (p *Proxy) updateService(before, after *v1.Service) {
	pass := func(name types.NamespacedName, before, after *v1.Service) {
		before = p.bounds.trim(before)
		decided := p.bounds.set(name, after)
		after = p.bounds.trim(after)
		for _, f := range p.families {
			if f.services.Update(before, after) || decided {
				p.changed()
			}
		}
	}
	s := after
	if s == nil {
		s = before
	}
	pass(nameOf(s), before, after)
	for _, other := range p.bounds.fitting(s.Namespace) {
		pass(nameOf(other), other, other)
	}
}
