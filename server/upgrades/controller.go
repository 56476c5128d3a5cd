package upgrades

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/server/cachetrim"
)

// Config describes a Controller. All fields must be set.
type Config struct {
	// REST returns how to reach the API server with the rights of an administrator; it is called when the controller runs.
	REST    func() (*rest.Config, error)
	Version string // of this server
	// Disabled means that the settings leave upgrades by the cluster out.
	Disabled bool
	Log      *slog.Logger
}

// Controller upgrades nodes to the versions in Upgrade objects.
type Controller struct {
	cfg     Config
	log     *slog.Logger
	wake    chan struct{}
	client  kubernetes.Interface // Run's
	dynamic dynamic.Interface    // Run's
}

// New returns a controller that has started nothing yet.
func New(cfg Config) *Controller {
	return &Controller{cfg: cfg, log: cfg.Log.With("component", "upgrades"), wake: make(chan struct{}, 1)}
}

func (c *Controller) connect() error {
	rc, err := c.cfg.REST()
	if err != nil {
		return err
	}
	if c.client, err = kubeclient.Of(rc); err != nil {
		return err
	}
	if c.dynamic, err = dynamic.NewForConfig(rc); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

// Run works until ctx ends. Only one server may run it at a time.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	ready()
	if c.cfg.Disabled {
		<-ctx.Done()
		return nil
	}
	if err := c.connect(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resource := c.dynamic.Resource(upgrades.Resource)
	// Wait for the CustomResourceDefinition, which the embedded manifests contain.
	pauses := retry.Backoff{First: 100 * time.Millisecond}
	if retry.Do(ctx, pauses, nil, func(ctx context.Context) error {
		_, err := resource.List(ctx, metav1.ListOptions{Limit: 1})
		return err
	}) != nil {
		return nil // ctx has ended
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	w := &worker{Controller: c, recorder: events.NewRecorder(scheme.Scheme,
		corev1.EventSource{Component: "umiak-upgrades"})}
	defer w.stop()

	f := dynamicinformer.NewDynamicSharedInformerFactory(c.dynamic, 0)
	inf := f.ForResource(upgrades.Resource).Informer()
	reg, err := inf.AddEventHandler(c.onChange())
	if err != nil {
		return fmt.Errorf("watch Upgrades: %w", err)
	}
	defer f.Shutdown()
	defer cancel() // runs before Shutdown, which waits
	f.Start(ctx.Done())
	if !cache.WaitFor(ctx, "upgrades", reg.HasSyncedChecker()) {
		return nil
	}
	w.objects = inf.GetStore()
	w.work(ctx)
	return nil
}

func (c *Controller) onChange() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.changed() }, UpdateFunc: func(any, any) { c.changed() },
		DeleteFunc: func(any) { c.changed() },
	}
}

func (c *Controller) changed() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// worker is the state of Controller.Run.
type worker struct {
	*Controller
	recorder record.EventRecorder
	objects  cache.Store

	// Set while there are Upgrades:
	nodes   cache.Store
	budgets policylisters.PodDisruptionBudgetLister
	end     func()
}

func (w *worker) stop() {
	if w.end != nil {
		w.end()
		w.end, w.nodes, w.budgets = nil, nil, nil
	}
}

// watch follows Nodes and PodDisruptionBudgets.
func (w *worker) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	f := informers.NewSharedInformerFactoryWithOptions(w.client, 0, informers.WithTransform(cachetrim.Object))
	w.end = func() { cancel(); f.Shutdown() }
	nodes, budgets := f.Core().V1().Nodes().Informer(), f.Policy().V1().PodDisruptionBudgets()
	var synced []cache.DoneChecker
	for _, inf := range []cache.SharedIndexInformer{nodes, budgets.Informer()} {
		reg, err := inf.AddEventHandler(w.onChange())
		if err != nil {
			return fmt.Errorf("watch Nodes and PodDisruptionBudgets: %w", err)
		}
		synced = append(synced, reg.HasSyncedChecker())
	}
	f.Start(ctx.Done())
	if !cache.WaitFor(ctx, "nodes of upgrades", synced...) {
		return ctx.Err()
	}
	w.nodes, w.budgets = nodes.GetStore(), budgets.Lister()
	return nil
}

func (w *worker) work(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	pauses := retry.Backoff{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		again, err := w.sync(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			again = pauses.Next()
			w.log.Warn("cannot continue an upgrade, trying again", "error", err, "in", again)
		default:
			pauses.Reset()
		}
		timer.Stop()
		if again > 0 {
			timer.Reset(again)
		}
	}
}

// sync performs one step of every Upgrade. It returns the time until the next call; 0 means to wait for an event.
func (w *worker) sync(ctx context.Context) (time.Duration, error) {
	all, err := w.upgrades()
	if len(all) == 0 && (w.nodes == nil || !w.anyRequested()) {
		w.stop()
		return 0, err
	}
	if w.nodes == nil {
		w.stop()
		if err := w.watch(ctx); err != nil {
			return 0, err
		}
	}
	nodes := w.list()
	errs := []error{err, w.finishOthers(ctx, all, nodes)}
	var again time.Duration
	taken, busy := map[string]string{}, ""
	for _, u := range all {
		step := Next(u, nodes, w.cfg.Version, taken, time.Now())
		for _, n := range Selected(u, nodes) {
			if taken[n.Name] == "" {
				taken[n.Name] = u.Name
			}
		}
		if step.Action == Begin && busy != "" {
			step.Action, step.Status.Phase, step.Status.Message = Wait, upgrades.Waiting, "for Upgrade "+busy
		}
		if step.Status.Phase == upgrades.Upgrading {
			busy = u.Name
		}
		err := w.do(ctx, u, &step)
		if err != nil {
			err = fmt.Errorf("upgrade %s: %w", u.Name, err)
		}
		if errs = append(errs, err); step.Again > 0 && (again == 0 || step.Again < again) {
			again = step.Again
		}
	}
	return again, errors.Join(errs...)
}

// upgrades returns all Upgrades, oldest first.
func (w *worker) upgrades() (all []*upgrades.Upgrade, err error) {
	for _, o := range w.objects.List() {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		one, e := upgrades.FromUnstructured(u)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		if one.DeletionTimestamp == nil {
			all = append(all, one)
		}
	}
	slices.SortFunc(all, func(a, b *upgrades.Upgrade) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all, err
}

func (w *worker) list() (nodes []*corev1.Node) {
	for _, o := range w.nodes.List() {
		if n, ok := o.(*corev1.Node); ok {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (w *worker) anyRequested() bool { return slices.ContainsFunc(w.list(), isRequested) }

// finishOthers finishes nodes whose Upgrade was deleted, or no longer selects them, during their upgrade.
func (w *worker) finishOthers(ctx context.Context, all []*upgrades.Upgrade, nodes []*corev1.Node) error {
	mine := map[string]bool{}
	for _, u := range all {
		for _, n := range Selected(u, nodes) {
			mine[n.Name] = true
		}
	}
	var errs []error
	for _, n := range nodes {
		if !isRequested(n) || mine[n.Name] {
			continue
		}
		if step, _ := checkRequested(n, time.Now()); step.Action == Finish || step.Status.Phase == upgrades.Failed {
			errs = append(errs, w.finish(ctx, n))
		}
	}
	return errors.Join(errs...)
}

// do performs a step and writes the Upgrade's status.
func (w *worker) do(ctx context.Context, u *upgrades.Upgrade, step *Step) error {
	var err error
	switch step.Action {
	case Finish:
		err = w.finish(ctx, step.Node)
	case Begin:
		reason, e := w.blockedBy(ctx, u, step.Node)
		switch {
		case e != nil:
			err = e
		case reason != "":
			step.Status.Phase, step.Status.Message = upgrades.Waiting, reason
			step.Again = budgetRetry
		default:
			// Write the status first: draining takes long, and this server may restart with the node.
			if err = w.writeStatus(ctx, u, step.Status); err != nil {
				break
			}
			if err = w.request(ctx, u, step.Node); err != nil {
				step.Status.Phase, step.Status.Message = upgrades.Waiting, err.Error()
			}
		}
	}
	return errors.Join(err, w.writeStatus(ctx, u, step.Status))
}

// request requests the upgrade from the node's agent.
func (w *worker) request(ctx context.Context, u *upgrades.Upgrade, n *corev1.Node) error {
	if u.Spec.Drain {
		if err := w.drain(ctx, u, n); err != nil {
			return err
		}
	}
	body, err := json.Marshal(upgrades.Request{ID: u.ID(), Version: u.Spec.Version, Source: u.Spec.Source,
		Asked: time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	w.log.Info("requesting a node's upgrade", "upgrade", u.Name, "node", n.Name, "from", version(n), "to",
		u.Spec.Version)
	return w.annotate(ctx, n, map[string]any{upgrades.AskedFor: string(body)}, nil)
}

// finish removes the request from a node and uncordons it if it was drained for the upgrade.
func (w *worker) finish(ctx context.Context, n *corev1.Node) error {
	var spec map[string]any
	if _, drained := n.Annotations[upgrades.Drained]; drained {
		spec = map[string]any{"unschedulable": nil}
	}
	a, _ := upgrades.Annotation[upgrades.Answer](n.Annotations, upgrades.Answered)
	w.log.Info("a node's upgrade has ended", "node", n.Name, "version", version(n), "error", a.Error)
	return w.annotate(ctx, n, map[string]any{upgrades.AskedFor: nil, upgrades.Drained: nil}, spec)
}

func (w *worker) annotate(ctx context.Context, n *corev1.Node, annotations, spec map[string]any) error {
	patch := map[string]any{"metadata": map[string]any{"annotations": annotations}}
	if spec != nil {
		patch["spec"] = spec
	}
	body, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	if _, err := w.client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, body,
		metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("write Node %s: %w", n.Name, err)
	}
	return nil
}

// writeStatus writes the status of an Upgrade if it has changed.
func (w *worker) writeStatus(ctx context.Context, u *upgrades.Upgrade, s upgrades.Status) error {
	if s == u.Status {
		return nil
	}
	body, err := json.Marshal(map[string]any{"status": s})
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
	_, err = w.dynamic.Resource(upgrades.Resource).Patch(ctx, u.Name, types.MergePatchType, body,
		metav1.PatchOptions{FieldManager: "umiak-upgrades"}, "status")
	if apierrors.IsNotFound(err) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if s.Phase != u.Status.Phase || s.Node != u.Status.Node {
		kind := corev1.EventTypeNormal
		if s.Phase == upgrades.Failed {
			kind = corev1.EventTypeWarning
		}
		w.recorder.Event(&corev1.ObjectReference{APIVersion: upgrades.Group + "/" + upgrades.Version,
			Kind: upgrades.Kind, Name: u.Name, UID: u.UID}, kind, string(s.Phase), s.Message)
	}
	w.log.Info("upgrade", "name", u.Name, "phase", s.Phase, "done", s.Done, "nodes", s.Nodes, "message", s.Message)
	u.Status = s
	return nil
}
