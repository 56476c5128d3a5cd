package netpol

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/ruleset"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/announce"
	"github.com/umiak-io/umiak/agent/dataplane/netpol/rules"
)

// writer receives the rules; *table writes them to the kernel.
type writer interface {
	apply(ctx context.Context, c rules.Change) error
	sync(ctx context.Context, w *rules.Builder) (netfilter.Result, error)
}

// session is the state that exists while the cluster has policies. The lock of Policies guards it.
type session struct {
	p      *Policies
	tables map[ruleset.Family]writer
	flows  *flows
	loop   *reconcile.Loop

	rules           *rules.Builder
	refused         []string                          // what the rules refuse
	pods            map[types.NamespacedName]*podInfo // of this node
	podsKnown       bool
	namespacesKnown bool
	// revision counts changes of the rules, applied is the last one that the kernel has.
	revision, applied uint64
}

// changed states that the rules may have changed. The caller holds the lock.
func (s *session) changed() {
	s.revision++
	s.loop.Changed()
}

// enforce runs a session until there are no policies, or ctx ends.
func (p *Policies) enforce(ctx context.Context, ready func()) error {
	p.persistNoPolicies(false)
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	watcher, err := netfilter.NewWatcher(conn, rules.TableName)
	if err != nil {
		return err
	}
	s := &session{p: p, tables: map[ruleset.Family]writer{}, rules: rules.NewBuilder(p.families...),
		pods: map[types.NamespacedName]*podInfo{}}
	s.loop = reconcile.New(reconcile.Config{Table: rules.TableName, Write: s.write, Log: p.log})
	for _, f := range p.families {
		s.tables[f] = newTable(conn, f)
	}
	if s.flows, err = newFlows(); err != nil {
		return err
	}
	defer s.flows.handle.Close()
	s.flows.allowed, s.flows.ended = s.allowed, s.ended

	ctx, cancel := context.WithCancelCause(ctx)
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel(nil)
	background.Go(func() {
		if err := watcher.Run(ctx, func(netfilter.Touch) { s.loop.Touched() }); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	})
	p.mu.Lock()
	for _, info := range p.policies {
		s.rules.SetPolicy(info.Policy)
	}
	s.rules.SetLocal(p.local)
	p.session = s
	p.logRefused()
	p.status.Ready = false
	p.status.Warning = bridgeWarning(p.families)
	if p.status.Warning != "" {
		p.log.Error(p.status.Warning)
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.session = nil
		p.notify()
	}()
	background.Go(func() { s.followPods(ctx) })
	background.Go(func() { s.followNamespaces(ctx) })
	background.Go(func() { s.flows.run(ctx, p.families) })
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.loop.Run(ctx, ready)
}

// wait returns when the state of the cluster is known.
func (s *session) wait(ctx context.Context) error {
	select {
	case <-s.p.nodes.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	for {
		s.p.mu.Lock()
		known, some, news := s.podsKnown && s.namespacesKnown, len(s.p.policies) > 0, s.p.news
		s.p.mu.Unlock()
		if known || !some {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// write brings all that has changed into the kernel. With full set, the tables are compared with the rules and
// repaired.
func (s *session) write(ctx context.Context, full bool) (repaired bool, err error) {
	p := s.p
	start := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.policies) == 0 {
		return false, reconcile.ErrDone
	}
	revision := s.revision
	changes := s.rules.Flush()
	var errs []error
	forbids := full
	for f, t := range s.tables {
		c := changes[f]
		forbids = forbids || rules.Forbids(c)
		if !full {
			errs = append(errs, t.apply(ctx, c))
			continue
		}
		done, err := t.sync(ctx, s.rules)
		errs = append(errs, err)
		repaired = repaired || done != netfilter.Result{}
		if err == nil {
			p.log.Info("network policies are in force", "family", f, "replaced", done.Replaced, "added", done.Added,
				"deleted", done.Deleted,
				"policies", s.rules.Policies(), "pods", s.rules.Pods(), "took",
				time.Since(start).Round(time.Microsecond))
		}
	}
	if err := errors.Join(errs...); err != nil {
		p.status.LastError = err.Error()
		return repaired, err
	}
	s.applied = revision
	p.status.Ready, p.status.LastError = true, ""
	p.status.LastSync, p.status.LastDuration = time.Now(), time.Since(start)
	p.status.Syncs++
	if full {
		p.status.Repairs++
	}
	p.notify()
	if forbids {
		s.flows.check()
	}
	return repaired, nil
}

func (s *session) allowed(packet rules.Packet) bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return s.rules.Verdict(packet)
}

func (s *session) ended(n uint, err error) {
	if err != nil {
		s.p.log.Error("cannot look through open connections", "error", err)
	}
	if n == 0 {
		return
	}
	s.p.log.Debug("ended connections that policies forbid", "connections", n)
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.p.status.Ended += uint64(n)
}

// setPods takes pods from the watch; if all is set, there are no others.
func (s *session) setPods(all bool, objs ...any) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	keep := map[string]bool{}
	for _, o := range objs {
		obj, ok := o.(*v1.Pod)
		if !ok {
			continue
		}
		info := podOf(obj)
		if info == nil {
			s.dropPod(obj.Namespace, obj.Name)
			continue
		}
		if all {
			keep[obj.Namespace+"/"+obj.Name] = true
		}
		name := types.NamespacedName{Namespace: obj.Namespace, Name: obj.Name}
		if info.node == s.p.cfg.NodeName {
			s.pods[name] = info
		}
		s.setPod(info)
	}
	if all {
		s.podsKnown = true
		for _, k := range s.rules.PodKeys() {
			if !keep[k] {
				ns, name, _ := cache.SplitMetaNamespaceKey(k)
				s.dropPod(ns, name)
			}
		}
	}
	s.p.changed()
}

// setPod gives a pod to the rules, with the addresses that were announced.
func (s *session) setPod(info *podInfo) {
	var more []netip.Addr
	if a, ok := s.p.announced[types.NamespacedName{Namespace: info.namespace, Name: info.name}]; ok &&
		a.UID == info.uid && info.node == s.p.cfg.NodeName {
		more = a.Addrs
	}
	s.rules.SetPod(info.pod(s.p.cfg.NodeName, more))
}

func (s *session) removePod(namespace, name string) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.dropPod(namespace, name)
	s.p.changed()
}

func (s *session) dropPod(namespace, name string) {
	k := types.NamespacedName{Namespace: namespace, Name: name}
	if info := s.pods[k]; info != nil && s.p.announced[k].UID == info.uid {
		delete(s.p.announced, k)
	}
	delete(s.pods, k)
	s.rules.DeletePod(namespace, name)
}

func (s *session) setNamespaces(all bool, objs ...any) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	keep := map[string]bool{}
	for _, o := range objs {
		if n, ok := o.(*v1.Namespace); ok {
			keep[n.Name] = true
			s.rules.SetNamespace(n.Name, n.Labels)
		}
	}
	if all {
		s.namespacesKnown = true
		for _, name := range s.rules.Namespaces() {
			if !keep[name] {
				s.rules.DeleteNamespace(name)
			}
		}
	}
	s.p.changed()
}

func (s *session) removeNamespace(name string) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	s.rules.DeleteNamespace(name)
	s.p.changed()
}

// watchTimeout bounds how long a pod waits until the watch delivers it. After that it starts with its address cut
// off until the watch does.
const watchTimeout = 2 * time.Second

// announce is called before a pod runs. It returns when its policies are in force.
func (p *Policies) announce(ctx context.Context, a announce.Pod) error {
	name := types.NamespacedName{Namespace: a.Namespace, Name: a.Name}
	p.mu.Lock()
	if a.Gone {
		if p.announced[name].Container == a.Container {
			delete(p.announced, name)
			if s := p.session; s != nil && s.pods[name] != nil {
				s.setPod(s.pods[name])
				s.changed()
			}
		}
		p.mu.Unlock()
		return nil
	}
	p.announced[name] = a
	for other, b := range p.announced {
		if other != name && slices.ContainsFunc(b.Addrs,
			func(x netip.Addr) bool { return slices.Contains(a.Addrs, x) }) {
			delete(p.announced, other) // it has lost them without a word
			if s := p.session; s != nil && s.pods[other] != nil {
				s.setPod(s.pods[other])
				s.changed()
			}
		}
	}
	p.mu.Unlock()
	if len(a.Addrs) == 0 {
		return nil
	}
	late := time.NewTimer(watchTimeout)
	defer late.Stop()
	told := uint64(0) // the revision that has the pod
	var of *session
	for {
		p.mu.Lock()
		s, news, known, some := p.session, p.news, p.known, len(p.policies) > 0
		if s != of {
			of, told = s, 0
		}
		if s != nil && told == 0 && s.pods[name] != nil && s.pods[name].uid == a.UID {
			s.setPod(s.pods[name])
			s.revision++
			told = s.revision
			s.loop.Urgent()
		}
		inForce := known && !some && s == nil || s != nil && told != 0 && s.applied >= told
		settled := known && (s == nil || s.applied != 0)
		p.mu.Unlock()
		if inForce {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			if !known && p.hadNone() {
				p.log.Warn("the API server does not answer, and there were no network policies: a pod starts without",
					"pod", name)
				return nil
			}
			if !settled {
				late.Reset(watchTimeout)
				continue
			}
			p.log.Warn("the API server does not tell of a pod that starts; it is cut off until then", "pod", name)
			return nil
		}
	}
}
