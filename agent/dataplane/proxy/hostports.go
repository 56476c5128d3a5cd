package proxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/sockdiag"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// hostPort is a port of a protocol on this machine's own addresses.
type hostPort struct {
	protocol v1.Protocol
	port     uint16
}

func (p hostPort) String() string { return fmt.Sprintf("%d/%s", p.port, p.protocol) }

// hostPorts prevents that a load balancer takes a port of this machine's addresses away from a program of the host
// that listens on it. Each desired port is looked up once, when it appears: from then on it belongs to the Service,
// or to the program, until one of them releases it. Only while a program holds a desired port it is looked up again,
// with pauses, since the kernel does not report that a socket is closed.
type hostPorts struct {
	log    *slog.Logger
	listen func() ([]sockdiag.Socket, error)
	addrs  []netip.Addr
	// report receives the ports that are held; may be nil.
	report func(ctx context.Context, held string) error

	mu     sync.Mutex
	wanted map[types.NamespacedName][]hostPort
	dirty  bool
	seen   string // what the Node says is held
	said   string // what it should say
	known  bool   // whether both are known
	wake   chan struct{}

	held map[hostPort]bool // of all that is wanted; belongs to the sync loop
}

// recheck is the pause between two looks at the sockets while a program holds a desired port.
const recheck = 30 * time.Second

func newHostPorts(cfg Config) *hostPorts {
	return &hostPorts{log: cfg.Log.With("component", "proxy"), listen: sockdiag.Listeners, addrs: cfg.NodeIPs,
		report: cfg.HostPorts,
		wanted: map[types.NamespacedName][]hostPort{}, held: map[hostPort]bool{}, wake: make(chan struct{}, 1),
		dirty: true}
}

// service records the ports that a Service wants; s is nil when it is gone. It reports whether they have changed.
func (h *hostPorts) service(n types.NamespacedName, s *v1.Service) bool {
	var ports []hostPort
	if s != nil && s.Spec.Type == v1.ServiceTypeLoadBalancer &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == wellknown.LoadBalancerClass) {
		for _, p := range s.Spec.Ports {
			ports = append(ports, hostPort{cmp.Or(p.Protocol, v1.ProtocolTCP), uint16(p.Port)})
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if slices.Equal(h.wanted[n], ports) {
		return false
	}
	if len(ports) == 0 {
		delete(h.wanted, n)
	} else {
		h.wanted[n] = ports
	}
	h.dirty = true
	return true
}

// node records what this node's Node lists.
func (h *hostPorts) node(n *v1.Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = n.Annotations[wellknown.HostPorts]
	h.poke()
}

func (h *hostPorts) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// again has the sockets looked at in the next sync.
func (h *hostPorts) again() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dirty = true
}

// decide looks at the sockets, if there is reason to, and returns the Services for which something has
// changed. own says whether a Service's endpoint is on this machine's own address and that port: then the
// listener is the Service's own.
func (h *hostPorts) decide(own func(n types.NamespacedName, p hostPort) bool) sets.Set[types.NamespacedName] {
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := sets.Set[types.NamespacedName]{}
	if !h.dirty {
		return changed
	}
	wanted := map[hostPort][]types.NamespacedName{}
	look := false
	for n, ports := range h.wanted {
		for _, p := range ports {
			wanted[p] = append(wanted[p], n)
			held, known := h.held[p]
			look = look || held || !known
		}
	}
	var sockets []sockdiag.Socket
	if look {
		var err error
		if sockets, err = h.listen(); err != nil {
			h.log.Warn("cannot see which ports the host uses: load balancers take what they want", "error", err)
		}
	}
	for p, services := range wanted {
		before, known := h.held[p]
		if known && !before {
			continue
		}
		held := slices.ContainsFunc(sockets, func(s sockdiag.Socket) bool {
			return slices.ContainsFunc(h.addrs,
				func(a netip.Addr) bool { return s.Takes(protocol(p.protocol), a, p.port) })
		})
		held = held && !slices.ContainsFunc(services, func(n types.NamespacedName) bool { return own(n, p) })
		if h.held[p] = held; held != before {
			changed.Insert(services...)
			if held {
				h.log.Warn("a program of this host listens on a port that a load balancer wants: it keeps the port",
					"port", p.String(), "services", fmt.Sprint(services))
			}
		}
	}
	var list []string
	for p, held := range h.held {
		if wanted[p] == nil {
			delete(h.held, p)
		} else if held {
			list = append(list, p.String())
		}
	}
	slices.Sort(list)
	h.said, h.known, h.dirty = strings.Join(list, ","), true, false
	h.poke()
	return changed
}

// holds reports whether the host keeps this port from Services on one of its own addresses.
func (h *hostPorts) holds(p hostPort, a netip.Addr) bool {
	return h.held[p] && slices.Contains(h.addrs, a)
}

// any reports whether the host holds anything that is wanted.
func (h *hostPorts) any() bool {
	for _, held := range h.held {
		if held {
			return true
		}
	}
	return false
}

// run reports what is held whenever it is not what the Node says.
func (h *hostPorts) run(ctx context.Context) {
	if h.report == nil {
		return
	}
	for pauses := (retry.Backoff{}); ; {
		h.mu.Lock()
		differ, said := h.known && h.said != h.seen, h.said
		h.mu.Unlock()
		var again <-chan time.Time
		if differ {
			if err := h.report(ctx, said); err != nil && ctx.Err() == nil {
				pause := pauses.Next()
				h.log.Warn("cannot say on the Node which ports the host uses, trying again", "error", err, "in", pause)
				again = time.After(pause)
			} else {
				pauses.Reset()
				h.mu.Lock()
				h.seen = said // the watch brings it, too
				h.mu.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-again:
		}
	}
}

// rebuild takes Services into the builder again, after the choice of their addresses has changed.
func (f *family) rebuild(services sets.Set[types.NamespacedName], node nodeInfo) {
	for nn := range services {
		for _, name := range f.byName[nn] {
			if port := f.ports[name]; port != nil {
				f.set(name, port, node)
			}
		}
	}
}

// servesItself reports whether an endpoint of a Service is this port of one of our own addresses.
func (f *family) servesItself(nn types.NamespacedName, p hostPort, own []netip.Addr) bool {
	for _, name := range f.byName[nn] {
		if name.Protocol != p.protocol {
			continue
		}
		for _, ep := range toEndpoints(f.eps[name]) {
			if ep.Port() == p.port && slices.Contains(own, ep.Addr()) {
				return true
			}
		}
	}
	return false
}

// withoutHeld drops the addresses on which the host keeps the port.
func withoutHeld(sp *rules.ServicePort, p v1.Protocol, node nodeInfo) {
	if node.host != nil {
		sp.LoadBalancerIPs = slices.DeleteFunc(sp.LoadBalancerIPs, func(a netip.Addr) bool {
			return node.host.holds(hostPort{p, sp.Port}, a)
		})
	}
}
