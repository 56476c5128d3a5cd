package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/metrics"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Config describes a Proxy. It is not changed after New.
type Config struct {
	// NodeName is this node.
	NodeName string
	// NodeIPs are its addresses. Their families are those that are served; if there are none, both are.
	NodeIPs []netip.Addr
	// ClusterCIDR are the addresses of all pods. What goes to a ClusterIP from elsewhere is masqueraded.
	ClusterCIDR []netip.Prefix
	// Flags are the user's. Where they name addresses for node ports, in a family that is not among them all addresses
	// but loopback ones answer.
	Flags Flags
	// Informers gives Services, EndpointSlices and Nodes. New registers its handlers; starting the factory
	// is the caller's business.
	Informers informers.SharedInformerFactory
	// Guard restricts the addresses and ports of Services; nil restricts nothing. See Proxy.SetGuard.
	Guard *Guard
	// Recorder reports a health-check port that cannot be opened; may be nil.
	Recorder events.EventRecorder
	// HostPorts is called with the ports of load balancers that programs of this host hold, in the form of
	// names.HostPorts, when the Node does not list them; may be nil.
	HostPorts func(ctx context.Context, held string) error
	Log       *slog.Logger
	// Registerer gets the metrics that kube-proxy does not have; may be nil. Metrics under kube-proxy's names are in
	// Kubernetes' registry, with those of all components.
	Registerer prometheus.Registerer
}

// Status describes the work of a Proxy.
type Status struct {
	Ready bool `json:"ready"`
	// Services counts ports of Services, one a family; Endpoints their endpoints, one a port.
	Services  int `json:"services"`
	Endpoints int `json:"endpoints"`
	// LastSync is the time of the last write to the kernel; LastDuration is counted from reading the changes.
	LastSync     time.Time     `json:"lastSync"`
	LastDuration time.Duration `json:"lastDuration"`
	Syncs        uint64        `json:"syncs"`
	// Repairs counts comparisons of the whole table with the desired one, after an error or a change by another
	// program.
	Repairs uint64 `json:"repairs"`
	// Refused are addresses and ports that Services ask for and do not get, with the reason; at most maxRefused a
	// family.
	Refused   []string `json:"refused,omitempty"`
	LastError string   `json:"lastError,omitempty"`
}

// Proxy serves the Services of a cluster on one node.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	synced   []cache.DoneChecker
	families []*family
	loop     *reconcile.Loop
	flows    *flows
	host     *hostPorts
	metrics  *metricsServer
	// rechecking states that the host's sockets will be looked at again.
	rechecking atomic.Bool
	bounds     *bounds
	wrap       func(table) table // for tests that make writes fail

	mu       sync.Mutex // guards what follows
	topology map[string]string
	podCIDRs []netip.Prefix
	guard    *Guard
	nodeSeen bool // the node or the guard changed in a way that matters to every Service
	status   Status
	health   healthcheck.ProxyHealth
}

// New prepares a Proxy and registers its handlers with the informers. Nothing touches the kernel yet.
func New(cfg Config) (*Proxy, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.NodeName == "" || cfg.Informers == nil {
		return nil, errors.New("new service proxy: NodeName and Informers are needed")
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log.With("component", "proxy"),
		topology: map[string]string{}, host: newHostPorts(cfg), bounds: newBounds(), guard: cfg.Guard,
	}
	p.flows = newFlows(conntrack.New(), p.log)
	p.metrics = newMetricsServer(cfg.Flags.Metrics, p.log)
	p.loop = reconcile.New(reconcile.Config{Table: rules.TableName, Write: p.write, Log: p.log})
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		if len(cfg.NodeIPs) > 0 && !hasFamily(f, cfg.NodeIPs) {
			continue
		}
		p.families = append(p.families, newFamily(f, cfg, p))
	}
	if len(p.families) == 0 {
		return nil, fmt.Errorf("new service proxy: node addresses %v are of no family", cfg.NodeIPs)
	}
	registerMetrics(cfg.Registerer, p)
	if err := p.register(); err != nil {
		return nil, fmt.Errorf("watch Services: %w", err)
	}
	return p, nil
}

func hasFamily(f rules.Family, addrs []netip.Addr) bool {
	for _, a := range addrs {
		if f.Has(a) {
			return true
		}
	}
	return false
}

// Exempt lets umiak's own connections to servers pass the tables that an earlier process has left. It must be called
// before the first such connection: rules are learned only from a server.
func Exempt(ctx context.Context) error {
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing can be lost
	var errs []error
	for _, f := range []rules.Family{rules.IPv4, rules.IPv6} {
		t, err := nft.NewTable(conn, rules.Config{Family: f})
		if err == nil {
			err = t.Exempt(ctx)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Status returns what the proxy is doing.
func (p *Proxy) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// Health is for the health-check node ports: they fail while the proxy cannot write its rules.
func (p *Proxy) Health() healthcheck.ProxyHealth {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.health
	h.CurrentTime = time.Now()
	return h
}

// changed states that something has changed that the tables depend on.
func (p *Proxy) changed() { p.loop.Changed() }

// Run serves until ctx ends. The rules stay: connections go on while umiak restarts, and the next Run
// adopts them.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing can be lost
	for _, f := range p.families {
		if f.table, err = nft.NewTable(conn, f.cfg); err != nil {
			return err
		}
		if p.wrap != nil {
			f.table = p.wrap(f.table)
		}
	}
	watcher, err := netfilter.NewWatcher(conn, rules.TableName)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var background sync.WaitGroup
	defer background.Wait()
	background.Go(func() {
		if err := watcher.Run(ctx, func(netfilter.Touch) { p.loop.Touched() }); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	background.Go(func() { p.flows.run(ctx) })
	background.Go(func() { p.host.run(ctx) })
	background.Go(func() { p.metrics.run(ctx) })
	defer cancel(nil)
	defer p.closeHealth()

	if !cache.WaitFor(ctx, "service proxy", p.synced...) {
		return context.Cause(ctx)
	}
	return p.loop.Run(ctx, ready)
}

// write brings all that has changed into the kernel. With full set, the tables are compared with the Services and
// repaired.
func (p *Proxy) write(ctx context.Context, full bool) (repaired bool, err error) {
	for _, f := range p.families {
		f.resync = f.resync || full
	}
	if repaired, err = p.sync(ctx); err != nil {
		return repaired, err
	}
	if p.host.any() && p.rechecking.CompareAndSwap(false, true) {
		time.AfterFunc(recheck, func() {
			p.rechecking.Store(false)
			p.host.again()
			p.changed()
		})
	}
	return repaired, nil
}

// sync brings all that has changed into the kernel.
func (p *Proxy) sync(ctx context.Context) (repaired bool, err error) {
	start := time.Now()
	p.mu.Lock()
	node := nodeInfo{name: p.cfg.NodeName, topology: p.topology, podCIDRs: p.podCIDRs, host: p.host, guard: p.guard}
	all := p.nodeSeen
	p.nodeSeen = false
	p.mu.Unlock()

	var errs []error
	repairs, services, endpoints := uint64(0), 0, 0
	refused := p.bounds.refusals()
	full := false
	var triggers []map[types.NamespacedName][]time.Time
	stales := make([]stale, len(p.families))
	for i, f := range p.families {
		trig, stale := f.read(node, all)
		triggers, stales[i] = append(triggers, trig), stale
	}
	moved := p.host.decide(func(nn types.NamespacedName, hp hostPort) bool {
		return slices.ContainsFunc(p.families, func(f *family) bool { return f.servesItself(nn, hp, p.cfg.NodeIPs) })
	})
	for i, f := range p.families {
		f.rebuild(moved, node)
		stale := stales[i]
		wasResync := f.resync
		full = full || wasResync
		wrong, err := f.write(ctx, p.log)
		repaired = repaired || wrong
		if err != nil {
			errs = append(errs, err)
			f.started = false // look through all of conntrack once the rules are right
			metrics.NFTablesSyncFailuresTotal.WithLabelValues(string(f.name)).Inc()
			continue
		}
		if wasResync {
			repairs++
		}
		p.flows.clean(stale)
		s, e := f.count()
		services, endpoints = services+s, endpoints+e
		refused = append(refused, f.refusals()...)
		metrics.SyncProxyRulesLastTimestamp.WithLabelValues(string(f.name)).SetToCurrentTime()
	}
	took := time.Since(start)
	err = errors.Join(errs...)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.health.Healthy = err == nil
	if err != nil {
		p.status.LastError = err.Error()
		return repaired, err
	}
	p.health.LastUpdated = now
	p.status = Status{Ready: true, Services: services, Endpoints: endpoints, LastSync: now, LastDuration: took,
		Syncs: p.status.Syncs + 1, Repairs: p.status.Repairs + repairs, Refused: refused}
	for i, f := range p.families {
		fam := string(f.name)
		metrics.SyncProxyRulesLatency.WithLabelValues(fam).Observe(took.Seconds())
		if full {
			metrics.SyncFullProxyRulesLatency.WithLabelValues(fam).Observe(took.Seconds())
		} else {
			metrics.SyncPartialProxyRulesLatency.WithLabelValues(fam).Observe(took.Seconds())
		}
		for _, times := range triggers[i] {
			for _, t := range times {
				metrics.NetworkProgrammingLatency.WithLabelValues(fam).Observe(now.Sub(t).Seconds())
			}
		}
	}
	return repaired, nil
}

func (p *Proxy) closeHealth() {
	for _, f := range p.families {
		f.closeHealth()
	}
}
