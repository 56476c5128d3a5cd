package servicelb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/umiak-io/umiak/server/cachetrim"
)

// Config is what the server gives.
type Config struct {
	// Client makes a client with the rights of an administrator, when the controller runs.
	Client  func() (kubernetes.Interface, error)
	Planner Planner
	// Changed returns a channel that is closed when Planner's functions may say something else; nil means they do not.
	Changed func() <-chan struct{}
	// Disabled takes back what was given before, once, and does nothing more.
	Disabled bool
	Recorder record.EventRecorder // default: one of our own
	Log      *slog.Logger
}

// Controller keeps the status of Services of type LoadBalancer.
type Controller struct {
	cfg    Config
	log    *slog.Logger
	wake   chan struct{}
	client kubernetes.Interface // Run's
}

// New makes a controller; nothing is started yet.
func New(cfg Config) *Controller {
	return &Controller{cfg: cfg, log: cfg.Log.With("component", "load-balancer"), wake: make(chan struct{}, 1)}
}

// Run works until ctx ends. Of several servers one may run it at a time.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	var err error
	if c.client, err = c.cfg.Client(); err != nil {
		return err
	}
	ready() // nobody waits for addresses: Services get them when they come
	if c.cfg.Disabled {
		c.retry(ctx, c.takeBack)
		<-ctx.Done()
		return nil
	}
	return c.serve(ctx)
}

func (c *Controller) changed() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// retry calls f until it succeeds, less and less often.
func (c *Controller) retry(ctx context.Context, f func(context.Context) error) {
	for failures := 1; ; failures++ {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		wait := retries.Pause(failures)
		c.log.Warn("cannot write the status of load balancers, trying again", "error", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// serve is the work of the leader.
func (c *Controller) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rec := c.cfg.Recorder
	if rec == nil {
		b := record.NewBroadcaster(record.WithContext(ctx))
		defer b.Shutdown()
		b.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
		rec = b.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "umiak-load-balancer"})
	}
	// Two factories, since only Services are selected; of Nodes most is dropped.
	services := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(cachetrim.Object),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.type", string(corev1.ServiceTypeLoadBalancer)).String()
		}))
	nodes := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(cachetrim.Object))
	defer services.Shutdown()
	defer nodes.Shutdown()
	defer cancel() // runs before the two above, which wait
	w := &watcher{Controller: c, recorder: rec, locals: map[types.NamespacedName]*endpoints{}, failed: failures{},
		services: services.Core().V1().Services().Informer(), nodes: nodes.Core().V1().Nodes().Informer()}
	defer w.stop()
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.changed() }, DeleteFunc: func(any) { c.changed() },
		UpdateFunc: func(before, after any) {
			if a, ok := before.(*corev1.Node); ok && !nodeMatters(a, after.(*corev1.Node)) {
				return // kubelets report every few minutes
			}
			c.changed()
		},
	}
	var synced []cache.DoneChecker
	for _, inf := range []cache.SharedIndexInformer{w.services, w.nodes} {
		reg, err := inf.AddEventHandler(handler)
		if err != nil {
			return fmt.Errorf("watch Services and Nodes: %w", err)
		}
		synced = append(synced, reg.HasSyncedChecker())
	}
	services.Start(ctx.Done())
	nodes.Start(ctx.Done())
	if !cache.WaitFor(ctx, "load balancer", synced...) {
		return nil
	}
	c.changed()
	news := c.news()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
			w.sync(ctx)
			retry.Stop()
			if next, ok := w.failed.next(); ok {
				retry.Reset(time.Until(next))
			}
		case <-retry.C:
			c.changed()
		case <-news:
			news = c.news() // before the next sync, which knows all until then
			c.changed()
		}
	}
}

func (c *Controller) news() <-chan struct{} {
	if c.cfg.Changed == nil {
		return nil
	}
	return c.cfg.Changed()
}

func nodeMatters(a, b *corev1.Node) bool { return !reflect.DeepEqual(nodeOf(a), nodeOf(b)) }

// watcher is what there is while this server leads.
type watcher struct {
	*Controller
	recorder        record.EventRecorder
	services, nodes cache.SharedIndexInformer
	locals          map[types.NamespacedName]*endpoints
	failed          failures
}

func (w *watcher) stop() {
	for _, e := range w.locals {
		e.stop()
	}
}

// sync brings every Service's status to what the plan gives it. A Service whose status cannot be written is tried
// again later, see failures; the others do not wait for it.
func (w *watcher) sync(ctx context.Context) {
	var services []*corev1.Service
	for _, o := range w.services.GetStore().List() {
		services = append(services, o.(*corev1.Service))
	}
	var nodes []*corev1.Node
	for _, o := range w.nodes.GetStore().List() {
		nodes = append(nodes, o.(*corev1.Node))
	}
	unknown := w.followLocal(ctx, services)
	plan := w.cfg.Planner.Plan(nodes, services, func(n types.NamespacedName) map[string]bool {
		if e := w.locals[n]; e != nil {
			return e.nodes()
		}
		return nil
	})
	var errs []error
	there := map[types.NamespacedName]bool{}
	for _, s := range services {
		n := name(s)
		there[n] = true
		r, mine := plan[n]
		if !mine || unknown[n] || w.failed.waits(s) {
			continue // endpoints that are unknown are being listed, which wakes the controller
		}
		err := w.write(ctx, s, r)
		if ctx.Err() != nil {
			return
		}
		if w.failed.record(s, err); err != nil {
			errs = append(errs, fmt.Errorf("status of Service %s: %w", n, err))
		}
	}
	w.failed.retain(there)
	if len(errs) > 0 {
		w.log.Warn("cannot write the status of load balancers, trying again", "error", errors.Join(errs...))
	}
}

// write says to the API server what a Service gets, if that is new.
func (w *watcher) write(ctx context.Context, s *corev1.Service, r Result) error {
	next := s.Status.DeepCopy()
	next.LoadBalancer.Ingress = ingress(s, r.Addrs)
	cond := metav1.Condition{Type: Condition, Status: metav1.ConditionFalse, Reason: r.Reason, Message: r.Message,
		ObservedGeneration: s.Generation}
	if r.OK() {
		cond.Status = metav1.ConditionTrue
	}
	before := meta.FindStatusCondition(s.Status.Conditions, Condition)
	meta.SetStatusCondition(&next.Conditions, cond)
	if reflect.DeepEqual(s.Status.LoadBalancer.Ingress, next.LoadBalancer.Ingress) && before != nil &&
		before.Status == cond.Status && before.Reason == cond.Reason && before.Message == cond.Message {
		return nil
	}
	if err := w.patch(ctx, s, next); err != nil {
		return err
	}
	if before == nil || before.Reason != cond.Reason || before.Message != cond.Message {
		kind := corev1.EventTypeWarning
		if r.Reason == Served {
			kind = corev1.EventTypeNormal
		}
		w.recorder.Event(s, kind, r.Reason, r.Message)
		w.log.Info("load balancer", "service", name(s), "addresses", r.Addrs, "reason", r.Reason, "message", r.Message)
	}
	return nil
}

func ingress(s *corev1.Service, addrs []netip.Addr) []corev1.LoadBalancerIngress {
	mode := corev1.LoadBalancerIPModeVIP
	var out []corev1.LoadBalancerIngress
	for _, a := range addrs {
		in := corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode}
		for _, p := range portsOf(s) { // by which a Service keeps what it has
			in.Ports = append(in.Ports, corev1.PortStatus{Port: p.port, Protocol: p.proto})
		}
		out = append(out, in)
	}
	return out
}

// patch changes the status and nothing else, unless the Service has changed meanwhile.
func (c *Controller) patch(ctx context.Context, s *corev1.Service, next *corev1.ServiceStatus) error {
	ingress, conditions := next.LoadBalancer.Ingress, next.Conditions
	if ingress == nil {
		ingress = []corev1.LoadBalancerIngress{}
	}
	if conditions == nil {
		conditions = []metav1.Condition{}
	}
	body, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": s.ResourceVersion},
		"status":   map[string]any{"loadBalancer": map[string]any{"ingress": ingress}, "conditions": conditions},
	})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	_, err = c.client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.MergePatchType, body,
		metav1.PatchOptions{FieldManager: "umiak-load-balancer"}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it has changed: the watch brings it, and with it the next try
	}
	return err
}

// takeBack removes what was given when this was not disabled.
func (c *Controller) takeBack(ctx context.Context) error {
	list, err := c.client.CoreV1().Services("").List(ctx, metav1.ListOptions{FieldSelector: "spec.type=LoadBalancer"})
	if err != nil {
		return fmt.Errorf("list load balancers: %w", err)
	}
	var errs []error
	for i := range list.Items {
		s := &list.Items[i]
		if !ours(s) || meta.FindStatusCondition(s.Status.Conditions, Condition) == nil {
			continue
		}
		next := s.Status.DeepCopy()
		next.LoadBalancer.Ingress = nil
		meta.RemoveStatusCondition(&next.Conditions, Condition)
		if err := c.patch(ctx, s, next); err != nil {
			errs = append(errs, fmt.Errorf("status of Service %s: %w", name(s), err))
		}
	}
	return errors.Join(errs...)
}

// endpoints follows on which nodes one Service has endpoints.
type endpoints struct {
	cancel   context.CancelFunc
	done     sync.WaitGroup
	informer cache.SharedInformer
}

func (e *endpoints) stop() { e.cancel(); e.done.Wait() }

// followLocal watches the endpoints of Services whose policy is Local, and only of those. It returns
// those that are not known yet.
func (w *watcher) followLocal(ctx context.Context, services []*corev1.Service) map[types.NamespacedName]bool {
	want, unknown := map[types.NamespacedName]bool{}, map[types.NamespacedName]bool{}
	for _, s := range services {
		if n := name(s); ours(s) && isLocal(s) {
			want[n] = true
			if w.locals[n] == nil {
				w.locals[n] = w.follow(ctx, n)
			}
			unknown[n] = !w.locals[n].informer.HasSynced()
		}
	}
	for n, e := range w.locals {
		if !want[n] {
			e.stop()
			delete(w.locals, n)
		}
	}
	return unknown
}

func (w *watcher) follow(ctx context.Context, n types.NamespacedName) *endpoints {
	ctx, cancel := context.WithCancel(ctx)
	sel := labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: n.Name}).String()
	inf := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithNamespace(n.Namespace),
		informers.WithTransform(cachetrim.Object),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = sel })).Discovery().V1().EndpointSlices().Informer()
	e := &endpoints{cancel: cancel, informer: inf}
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { w.changed() }, UpdateFunc: func(any, any) { w.changed() },
		DeleteFunc: func(any) { w.changed() },
	})
	if err != nil {
		w.log.Error("cannot follow endpoints", "service", n, "error", err) // only of a stopped informer
	}
	e.done.Go(func() { inf.RunWithContext(ctx) })
	if err == nil {
		e.done.Go(func() {
			if cache.WaitFor(ctx, "endpoints of a load balancer", reg.HasSyncedChecker()) {
				w.changed() // also when there is none
			}
		})
	}
	return e
}

// nodes are those with an endpoint that takes connections: a ready one, or one that is on its way out and
// still serves.
func (e *endpoints) nodes() map[string]bool {
	out := map[string]bool{}
	for _, o := range e.informer.GetStore().List() {
		s, _ := o.(*discoveryv1.EndpointSlice)
		if s == nil {
			continue
		}
		for _, ep := range s.Endpoints {
			ready := ep.Conditions.Ready == nil || *ep.Conditions.Ready
			serving := ep.Conditions.Serving != nil && *ep.Conditions.Serving
			if ep.NodeName != nil && (ready || serving) {
				out[*ep.NodeName] = true
			}
		}
	}
	return out
}
