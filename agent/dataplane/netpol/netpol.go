package netpol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/announce"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
	"github.com/umiak-io/umiak/internal/atomicfile"
)

// Config describes the enforcement on one node. It is not changed after New.
type Config struct {
	// NodeName is this node.
	NodeName string
	// ClusterCIDR are the addresses of all pods. Their families are those that are served; if there are
	// none, both are.
	ClusterCIDR []netip.Prefix
	// Client watches policies and, while there are any, pods and namespaces.
	Client kubernetes.Interface
	// Informers gives Nodes. New registers a handler; starting the factory is the caller's business.
	Informers informers.SharedInformerFactory
	// Socket is the socket at which the CNI plugin announces pods; empty for none.
	Socket string
	// StateFile is there while the cluster had no policies when it was last heard of: pods of a node that
	// starts without its server then need not wait. Empty: they do.
	StateFile string
	Log       *slog.Logger
	// Registerer gets metrics; nil is allowed.
	Registerer prometheus.Registerer
}

// Status describes the work of a Policies.
type Status struct {
	// Ready is true once the policies of the API server are in force.
	Ready bool `json:"ready"`
	// Policies, Pods and LocalPods are how many there are; pods are counted only while there are policies.
	Policies  int `json:"policies"`
	Pods      int `json:"pods"`
	LocalPods int `json:"localPods"`
	// LastSync is the time of the last write to the kernel; LastDuration is counted from reading the changes.
	LastSync     time.Time     `json:"lastSync"`
	LastDuration time.Duration `json:"lastDuration"`
	Syncs        uint64        `json:"syncs"`
	// Repairs counts comparisons of the whole table with the desired one, after an error or a change by another
	// program.
	Repairs uint64 `json:"repairs"`
	// Ended counts open connections that were ended because a policy forbade them.
	Ended uint64 `json:"ended"`
	// Refused names policies that allow nothing, because they exceed what they may cost a node, with the bound; not all
	// where they are many.
	Refused []string `json:"refused,omitempty"`
	// Warning names what policies are not enforced on.
	Warning   string `json:"warning,omitempty"`
	LastError string `json:"lastError,omitempty"`
}

// Policies enforces the NetworkPolicies of a cluster on one node.
type Policies struct {
	cfg      Config
	log      *slog.Logger
	families []ruleset.Family
	nodes    cache.DoneChecker

	mu        sync.Mutex // guards what follows, and the session's state
	policies  map[types.NamespacedName]policyInfo
	known     bool // the policies are
	local     []netip.Prefix
	announced map[types.NamespacedName]announce.Pod
	session   *session // nil while there are no policies
	status    Status
	// news is closed and replaced whenever something has changed that a goroutine may wait for.
	news chan struct{}
}

// policyInfo is the record of a policy while there is no session, and by which a change of its spec is recognized.
type policyInfo struct {
	rules.Policy
	uid        types.UID
	generation int64
}

// New prepares Policies. Nothing touches the kernel yet.
func New(cfg Config) (*Policies, error) {
	if cfg.NodeName == "" || cfg.Client == nil || cfg.Informers == nil {
		return nil, errors.New("new network policies: NodeName, Client and Informers are needed")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Policies{
		cfg: cfg, log: cfg.Log.With("component", "policy"),
		policies: map[types.NamespacedName]policyInfo{}, announced: map[types.NamespacedName]announce.Pod{},
		news: make(chan struct{}),
	}
	for _, f := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		if len(cfg.ClusterCIDR) == 0 || slices.ContainsFunc(cfg.ClusterCIDR,
			func(c netip.Prefix) bool { return f.Has(c.Addr()) }) {
			p.families = append(p.families, f)
		}
	}
	reg, err := cfg.Informers.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    p.node,
		UpdateFunc: func(_, n any) { p.node(n) },
	})
	if err != nil {
		return nil, fmt.Errorf("watch Nodes: %w", err)
	}
	p.nodes = reg.HasSyncedChecker()
	p.registerMetrics(cfg.Registerer)
	return p, nil
}

// Status returns what is being done.
func (p *Policies) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.status
	s.Policies = len(p.policies)
	if p.session != nil {
		s.Pods, s.LocalPods = p.session.rules.Pods(), p.session.rules.LocalPods()
		s.Refused = p.session.refused
	}
	return s
}

// Cleanup removes the tables, also those of another process. Missing tables are no error.
func Cleanup(ctx context.Context) error {
	_, err := netfilter.Remove(ctx, rules.TableName)
	return err
}

// Off removes the tables and the StateFile of an earlier run where policies are no longer enforced:
// policies may be made meanwhile.
func Off(ctx context.Context, stateFile string) error {
	if err := os.Remove(stateFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the record of network policies: %w", err)
	}
	return Cleanup(ctx)
}

// notify wakes the goroutines that wait for a change. The caller holds the lock.
func (p *Policies) notify() {
	close(p.news)
	p.news = make(chan struct{})
}

// Run enforces policies until ctx ends. The rules stay: what they forbid is forbidden while umiak
// restarts, too, and the next Run adopts them.
func (p *Policies) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel(nil)
	if p.cfg.Socket != "" {
		l, err := announce.Listen(ctx, p.cfg.Socket)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		defer stop()
		defer l.Close() //nolint:errcheck // it is in any case
		background.Go(func() {
			if err := announce.Serve(ctx, l, p.announce); err != nil {
				cancel(err)
			}
		})
	}
	background.Go(func() { p.followPolicies(ctx) })
	for {
		p.mu.Lock()
		known, some, news := p.known, len(p.policies) > 0, p.news
		p.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case known && some:
			if err := p.enforce(ctx, ready); err != nil && ctx.Err() == nil {
				return err
			}
			continue
		case known:
			if err := p.none(ctx); err != nil {
				return err
			}
			ready()
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

// none makes sure that nothing is enforced.
func (p *Policies) none(ctx context.Context) error {
	p.mu.Lock()
	done := p.status.Ready && p.status.Syncs == 0
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := Cleanup(ctx); err != nil {
		return err
	}
	p.persistNoPolicies(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = Status{Ready: true, Ended: p.status.Ended, Repairs: p.status.Repairs}
	p.notify()
	return nil
}

// persistNoPolicies records on disk, for the next start, whether the cluster has no policies.
func (p *Policies) persistNoPolicies(none bool) {
	if p.cfg.StateFile == "" || none == p.hadNone() {
		return
	}
	var err error
	if none {
		err = atomicfile.Write(p.cfg.StateFile, nil, 0o600)
	} else {
		err = os.Remove(p.cfg.StateFile)
	}
	if err != nil {
		p.log.Error("cannot record whether there are network policies", "error", err)
	}
}

func (p *Policies) hadNone() bool {
	_, err := os.Stat(p.cfg.StateFile)
	return p.cfg.StateFile != "" && err == nil
}

// setPolicies takes policies from the watch; if all is set, there are no others.
func (p *Policies) setPolicies(all bool, objs ...any) {
	keep, now := map[types.NamespacedName]bool{}, map[types.NamespacedName]policyInfo{}
	for _, o := range objs {
		np, ok := o.(*networking.NetworkPolicy)
		if !ok {
			continue
		}
		name := types.NamespacedName{Namespace: np.Namespace, Name: np.Name}
		keep[name] = true
		if p.hasSpec(name, np) {
			continue
		}
		// Before the lock, which pods that start wait for: this grows with the object, what is done under the lock is
		// bounded.
		r, err := policyOf(np)
		if err != nil {
			p.log.Error("cannot enforce a policy", "error", err)
			continue
		}
		now[name] = policyInfo{rules.Limit(r), np.UID, np.Generation}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, info := range now {
		p.policies[name] = info
		if p.session != nil {
			p.session.rules.SetPolicy(info.Policy)
		}
	}
	if all {
		p.known = true
		for name := range p.policies {
			if !keep[name] {
				p.forget(name)
			}
		}
	}
	p.logRefused()
	p.changed()
}

// hasSpec reports whether a policy's spec is the one that is known already.
func (p *Policies) hasSpec(name types.NamespacedName, np *networking.NetworkPolicy) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	old, ok := p.policies[name]
	return ok && old.uid == np.UID && old.generation == np.Generation && np.Generation != 0
}

// logRefused logs which policies exceed what they may cost, once for each. The caller holds the lock.
func (p *Policies) logRefused() {
	if p.session == nil {
		return
	}
	before := p.session.refused
	p.session.refused = p.session.rules.Refused()
	for _, r := range p.session.refused {
		if !slices.Contains(before, r) {
			p.log.Warn("network policies exceed what they may cost a node", "what", r)
		}
	}
}

func (p *Policies) removePolicy(namespace, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget(types.NamespacedName{Namespace: namespace, Name: name})
	p.logRefused()
	p.changed()
}

func (p *Policies) forget(name types.NamespacedName) {
	delete(p.policies, name)
	if p.session != nil {
		p.session.rules.DeletePolicy(name.Namespace, name.Name)
	}
}

// changed wakes what waits for changes of the rules. The caller holds the lock.
func (p *Policies) changed() {
	p.notify()
	if p.session != nil {
		p.session.changed()
	}
}

// node reads the ranges of the pods' addresses from this node's Node.
func (p *Policies) node(o any) {
	n, _ := o.(*v1.Node)
	if n == nil || n.Name != p.cfg.NodeName {
		return
	}
	var local []netip.Prefix
	for _, s := range n.Spec.PodCIDRs {
		if c, err := netip.ParsePrefix(s); err == nil {
			local = append(local, c.Masked())
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A Node that is deleted and created again has no range for a moment; its pods keep their addresses.
	if len(local) == 0 || slices.Equal(local, p.local) {
		return
	}
	p.local = local
	if p.session != nil {
		p.session.rules.SetLocal(local)
	}
	p.changed()
}

// bridgeWarning returns a warning if packets between pods of one bridge do not pass the rules.
func bridgeWarning(families []ruleset.Family) string {
	var missing []string
	for _, f := range families {
		name := "bridge-nf-call-" + map[ruleset.Family]string{ruleset.IPv4: "iptables", ruleset.IPv6: "ip6tables"}[f]
		raw, err := os.ReadFile("/proc/sys/net/bridge/" + name)
		if err != nil || strings.TrimSpace(string(raw)) != "1" {
			missing = append(missing, "net.bridge."+name)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	return "policies are not enforced between pods of this node: " + strings.Join(missing, " and ") +
		" must be 1 (module br_netfilter)"
}

func (p *Policies) registerMetrics(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	gauge := func(name, help string, value func(Status) float64) {
		_ = reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return value(p.Status()) }))
	}
	counter := func(name, help string, value func(Status) float64) {
		_ = reg.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help},
			func() float64 { return value(p.Status()) }))
	}
	gauge("umiak_policy_policies", "NetworkPolicies of the cluster.",
		func(s Status) float64 { return float64(s.Policies) })
	gauge("umiak_policy_pods", "Pods that policies may be about; 0 while there are no policies.",
		func(s Status) float64 { return float64(s.Pods) })
	gauge("umiak_policy_local_pods", "Pods of this node that policies may be about.",
		func(s Status) float64 { return float64(s.LocalPods) })
	gauge("umiak_policy_last_sync_seconds", "How long the last change took from its reading until the kernel had it.",
		func(s Status) float64 { return s.LastDuration.Seconds() })
	counter("umiak_policy_repairs_total", "How often the whole table was compared with what it should be.",
		func(s Status) float64 { return float64(s.Repairs) })
	counter("umiak_policy_ended_connections_total", "Open connections that were ended because a policy forbade them.",
		func(s Status) float64 { return float64(s.Ended) })
}
