package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	kubeproxy "k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// table receives the elements of a family; *nft.Table writes them to the kernel.
type table interface {
	Apply(ctx context.Context, c rules.Change) error
	Sync(ctx context.Context, w nft.Wanted) (nft.Synced, error)
	Forget(ctx context.Context, stale func(key, endpoint string) bool) (int, error)
}

// family is all there is of one address family. The trackers are safe for concurrent use; the rest
// belongs to the sync loop.
type family struct {
	name      v1.IPFamily
	log       *slog.Logger
	cfg       rules.Config
	services  *kubeproxy.ServiceChangeTracker
	endpoints *endpointTracker

	ports   kubeproxy.ServicePortMap
	eps     kubeproxy.EndpointsMap
	byName  map[types.NamespacedName][]kubeproxy.ServicePortName
	gone    kubeproxy.ServicePortMap // UDP ports that went since the last sync
	builder *rules.Builder
	table   table
	resync  bool
	forget  bool // clients with affinity are to be looked through
	started bool // conntrack was looked through once

	refused map[string][]string // by Service port, what it asks for and does not get

	health      healthcheck.ServiceHealthServer
	healthPorts map[types.NamespacedName]uint16
}

// nodeInfo holds the properties of the node on which the choice of endpoints depends.
type nodeInfo struct {
	name     string
	topology map[string]string
	podCIDRs []netip.Prefix
	host     *hostPorts // nil: the host holds nothing
	guard    *Guard     // nil: Services may take everything
}

func newFamily(fam rules.Family, cfg Config, p *Proxy) *family {
	log := p.log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &family{
		name: v1.IPv4Protocol, log: log,
		cfg:    rules.Config{Family: fam},
		ports:  kubeproxy.ServicePortMap{},
		eps:    kubeproxy.EndpointsMap{},
		byName: map[types.NamespacedName][]kubeproxy.ServicePortName{},
		gone:   kubeproxy.ServicePortMap{}, refused: map[string][]string{},
		healthPorts: map[types.NamespacedName]uint16{},
	}
	if fam == rules.IPv6 {
		f.name = v1.IPv6Protocol
	}
	for _, c := range cfg.ClusterCIDR {
		if fam.Has(c.Addr()) {
			f.cfg.PodCIDRs = append(f.cfg.PodCIDRs, c.Masked())
		}
	}
	var nodePorts []string
	for _, c := range cfg.Flags.nodePorts(cfg.NodeIPs) {
		nodePorts = append(nodePorts, c.String())
		if fam.Has(c.Addr()) {
			f.cfg.NodePortAddresses = append(f.cfg.NodePortAddresses, c.Masked())
		}
	}
	f.builder = rules.NewBuilder(f.cfg)
	f.services = kubeproxy.NewServiceChangeTracker(f.name, nil, f.servicesChanged)
	f.endpoints = newEndpointTracker(f.name, cfg.NodeName)
	f.health = healthcheck.NewServiceHealthServer(cfg.NodeName, cfg.Recorder,
		proxyutil.NewNodePortAddresses(f.name, nodePorts), p, f.name)
	return f
}

// servicesChanged is called by the tracker, from read, for each Service that changed.
func (f *family) servicesChanged(before, after kubeproxy.ServicePortMap) {
	var nn types.NamespacedName
	for name, port := range before {
		nn = name.NamespacedName
		if _, stays := after[name]; !stays && port.Protocol() == v1.ProtocolUDP {
			f.gone[name] = port
		}
	}
	names := make([]kubeproxy.ServicePortName, 0, len(after))
	for name := range after {
		nn = name.NamespacedName
		names = append(names, name)
	}
	if len(names) == 0 {
		delete(f.byName, nn)
	} else {
		f.byName[nn] = names
	}
}

// stale is what conntrack is to be cleaned of: UDP Services that changed, with their endpoints.
type stale struct {
	family    v1.IPFamily
	ports     kubeproxy.ServicePortMap
	endpoints kubeproxy.EndpointsMap
}

// read takes what changed from the trackers into the builder.
func (f *family) read(node nodeInfo, all bool) (map[types.NamespacedName][]time.Time, stale) {
	svc := f.ports.Update(f.services)
	endpoints, changed := f.endpoints.update(f.eps)
	dirty := svc.UpdatedServices.Union(endpoints)
	if all {
		dirty = sets.KeySet(f.byName).Union(dirty)
	}
	st := stale{family: f.name, ports: f.gone, endpoints: kubeproxy.EndpointsMap{}}
	f.gone = kubeproxy.ServicePortMap{}
	for name := range st.ports {
		if _, ok := f.ports[name]; ok {
			delete(st.ports, name)
		}
	}
	healthChanged := false
	for nn := range dirty {
		want := map[string]bool{}
		healthPort := uint16(0)
		for _, name := range f.byName[nn] {
			port := f.ports[name]
			if port == nil {
				continue
			}
			want[f.set(name, port, node).Name] = true
			if p := port.HealthCheckNodePort(); p != 0 && !node.guard.holds(p) {
				healthPort = uint16(p)
			}
			if port.Protocol() == v1.ProtocolUDP {
				st.ports[name] = port
				st.endpoints[name] = f.eps[name]
			}
		}
		for _, old := range f.builder.PortsOf(nn.String()) {
			if !want[old] {
				f.builder.Delete(old)
				delete(f.refused, old)
			}
		}
		if healthPort != f.healthPorts[nn] || healthPort != 0 {
			healthChanged = true
			if f.healthPorts[nn] = healthPort; healthPort == 0 {
				delete(f.healthPorts, nn)
			}
		}
	}
	if healthChanged {
		f.syncHealth()
	}
	if !f.started {
		// What an earlier process left in conntrack may point anywhere: look through all of it once.
		f.started = true
		for name, port := range f.ports {
			if port.Protocol() == v1.ProtocolUDP {
				st.ports[name], st.endpoints[name] = port, f.eps[name]
			}
		}
	}
	return changed, st
}

// syncHealth opens and closes health-check ports, and tells them how many endpoints this node has.
func (f *family) syncHealth() {
	counts := map[types.NamespacedName]int{}
	for nn := range f.healthPorts {
		local := sets.Set[string]{}
		for _, name := range f.byName[nn] {
			for _, ep := range f.eps[name] {
				if ep.IsLocal() && ep.IsReady() {
					local.Insert(ep.IP())
				}
			}
		}
		counts[nn] = local.Len()
	}
	_ = f.health.SyncServices(f.healthPorts) // reports to the log and by event what it cannot open
	_ = f.health.SyncEndpoints(counts)
}

func (f *family) closeHealth() { _ = f.health.SyncServices(nil) }

// write brings the builder's changes into the kernel. After an error, the next write compares the whole table; then
// repaired reports whether anything was wrong.
func (f *family) write(ctx context.Context, log *slog.Logger) (repaired bool, err error) {
	c := f.builder.Flush()
	f.forget = f.forget || c.Forget
	if f.resync {
		start := time.Now()
		s, err := f.table.Sync(ctx, f.builder)
		if err != nil {
			return true, err
		}
		f.resync = false
		f.forget = !s.Replaced // what is remembered may be from before
		repaired = s != nft.Synced{}
		log.Info("service rules are in place", "family", f.name, "replaced", s.Replaced,
			"added", s.Added, "deleted", s.Deleted,
			"services", f.builder.Len(), "took", time.Since(start).Round(time.Microsecond))
	} else if err := f.table.Apply(ctx, c); err != nil {
		f.resync = true
		return false, err
	}
	if f.forget {
		if _, err := f.table.Forget(ctx, f.builder.Stale); err != nil {
			f.resync = true
			return repaired, fmt.Errorf("forget clients of endpoints that are gone: %w", err)
		}
		f.forget = false
	}
	return repaired, nil
}

// set takes a Service port into the builder, without what it may not take.
func (f *family) set(name kubeproxy.ServicePortName, port kubeproxy.ServicePort, node nodeInfo) rules.ServicePort {
	sp := servicePort(name, port, f.eps[name], node)
	refused := node.guard.restrict(&sp, port.Protocol())
	if len(refused) > 0 && !slices.Equal(f.refused[sp.Name], refused) {
		f.log.Warn("a Service does not get what it asks for", "why", refused[0], "more", len(refused)-1)
	}
	if delete(f.refused, sp.Name); len(refused) > 0 {
		f.refused[sp.Name] = refused
	}
	f.builder.Set(sp)
	return sp
}

func (f *family) count() (services, endpoints int) { return f.builder.Len(), f.builder.Endpoints() }

// protocols are those that a Service may have.
func protocol(p v1.Protocol) uint8 {
	switch p {
	case v1.ProtocolUDP:
		return rules.UDP
	case v1.ProtocolSCTP:
		return rules.SCTP
	}
	return rules.TCP
}

// servicePort decides what a Service port looks like from this node.
func servicePort(name kubeproxy.ServicePortName, port kubeproxy.ServicePort, endpoints []kubeproxy.Endpoint,
	node nodeInfo) rules.ServicePort {
	cluster, local, reachable, anywhere := kubeproxy.CategorizeEndpoints(endpoints, port, node.name, node.topology)
	sp := rules.ServicePort{
		// Name and protocol make it unique, also if a Service has one name for a TCP and an UDP port.
		Name:            name.String() + "/" + string(name.Protocol),
		Service:         name.NamespacedName.String(),
		Protocol:        protocol(port.Protocol()),
		ClusterIP:       toAddr(port.ClusterIP()),
		Port:            uint16(port.Port()),
		NodePort:        uint16(port.NodePort()),
		ExternalIPs:     toAddrs(port.ExternalIPs()),
		LoadBalancerIPs: toAddrs(port.LoadBalancerVIPs()),
		InternalLocal:   port.InternalPolicyLocal(),
		ExternalLocal:   port.ExternalPolicyLocal(),
		Cluster:         toEndpoints(cluster),
		Local:           toEndpoints(local),
		Anywhere:        anywhere,
	}
	withoutHeld(&sp, port.Protocol(), node)
	if port.SessionAffinityType() == v1.ServiceAffinityClientIP {
		sp.Affinity = uint32(port.StickyMaxAgeSeconds())
	}
	for _, r := range port.LoadBalancerSourceRanges() {
		ones, _ := r.Mask.Size()
		if a := toAddr(r.IP); a.IsValid() {
			sp.SourceRanges = append(sp.SourceRanges, netip.PrefixFrom(a, ones))
		}
	}
	for _, ep := range reachable {
		a, err := netip.ParseAddr(ep.IP())
		if err != nil {
			continue
		}
		// An EndpointSlice that was written by hand may not name the node of an endpoint.
		here := ep.IsLocal()
		for _, c := range node.podCIDRs {
			here = here || c.Contains(a)
		}
		if here {
			sp.Hairpin = append(sp.Hairpin, a)
		}
	}
	return sp
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func toAddrs(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a := toAddr(ip); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

func toEndpoints(eps []kubeproxy.Endpoint) []netip.AddrPort {
	var out []netip.AddrPort
	for _, ep := range eps {
		if a, err := netip.ParseAddr(ep.IP()); err == nil && ep.Port() > 0 {
			out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(ep.Port())))
		}
	}
	return out
}
