package dnsendpoints

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/server/cachetrim"
)

// selector selects the EndpointSlices of this package.
const selector = discoveryv1.LabelManagedBy + "=" + manager

// Config describes a Controller.
type Config struct {
	// Client makes a client that may write EndpointSlices, when the Controller runs.
	Client func() (kubernetes.Interface, error)
	// ClusterDNS are the addresses of the DNS Service, one a family.
	ClusterDNS []netip.Addr
	// Off deletes the EndpointSlices of earlier runs, also those of other servers, and does nothing more: one request
	// for each call of Run.
	Off bool
	Log *slog.Logger
}

// Controller maintains the endpoints of the DNS Service.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	families []discoveryv1.AddressType
}

// New returns a Controller. Nothing is started yet.
func New(cfg Config) *Controller {
	c := &Controller{cfg: cfg, log: cfg.Log.With("component", "dns-endpoints")}
	for _, a := range cfg.ClusterDNS {
		family := discoveryv1.AddressTypeIPv6
		if a.Unmap().Is4() {
			family = discoveryv1.AddressTypeIPv4
		}
		c.families = append(c.families, family)
	}
	return c
}

// Run works until ctx ends. One server may run it at a time.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	client, err := c.cfg.Client()
	if err != nil {
		return err
	}
	ready() // the nodes' own tables answer where the proxy does not need the endpoints
	if c.cfg.Off {
		c.retry(ctx, func(ctx context.Context) error { return remove(ctx, client) })
		<-ctx.Done()
		return nil
	}
	return c.follow(ctx, client)
}

// follow writes the EndpointSlices whenever Nodes or EndpointSlices change.
func (c *Controller) follow(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nodes := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(cachetrim.Object))
	own := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(cachetrim.Object),
		informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = selector }))
	defer nodes.Shutdown()
	defer own.Shutdown()
	defer cancel() // runs before the two above, which wait
	wake := make(chan struct{}, 1)
	changed := func(any) {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	n, s := nodes.Core().V1().Nodes().Informer(), own.Discovery().V1().EndpointSlices().Informer()
	var synced []cache.DoneChecker
	for _, inf := range []cache.SharedIndexInformer{n, s} {
		reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed, DeleteFunc: changed,
			UpdateFunc: func(before, after any) {
				a, isNode := before.(*corev1.Node)
				b, _ := after.(*corev1.Node)
				if !isNode || !reflect.DeepEqual(a.Status.Addresses, b.Status.Addresses) {
					changed(nil)
				}
			}})
		if err != nil {
			return fmt.Errorf("watch Nodes and EndpointSlices: %w", err)
		}
		synced = append(synced, reg.HasSyncedChecker())
	}
	nodes.Start(ctx.Done())
	own.Start(ctx.Done())
	if !cache.WaitFor(ctx, "endpoints of DNS", synced...) {
		return nil
	}
	changed(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
			c.retry(ctx, func(ctx context.Context) error {
				want := plan(list[corev1.Node](n.GetStore()), c.families)
				return write(ctx, client, want, list[discoveryv1.EndpointSlice](s.GetStore()))
			})
		}
	}
}

// remove deletes the EndpointSlices of earlier runs.
func remove(ctx context.Context, client kubernetes.Interface) error {
	l, err := client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return fmt.Errorf("list EndpointSlices: %w", err)
	}
	var have []*discoveryv1.EndpointSlice
	for i := range l.Items {
		have = append(have, &l.Items[i])
	}
	return write(ctx, client, nil, have)
}

// list returns the objects of a store.
func list[T any](s cache.Store) (out []*T) {
	for _, o := range s.List() {
		if t, ok := o.(*T); ok {
			out = append(out, t)
		}
	}
	return out
}

// write makes the EndpointSlices in have as wanted.
func write(ctx context.Context, client kubernetes.Interface, want []discoveryv1.EndpointSlice,
	have []*discoveryv1.EndpointSlice) error {
	api := client.DiscoveryV1().EndpointSlices(namespace)
	var errs []error
	for _, w := range want {
		i := slices.IndexFunc(have, func(h *discoveryv1.EndpointSlice) bool { return h.Name == w.Name })
		switch {
		case i < 0:
			if _, err := api.Create(ctx, &w, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				errs = append(errs, fmt.Errorf("create EndpointSlice %s: %w", w.Name, err))
			}
		case !reflect.DeepEqual(w.Endpoints, have[i].Endpoints) || !reflect.DeepEqual(w.Ports, have[i].Ports) ||
			w.Labels[discoveryv1.LabelServiceName] != have[i].Labels[discoveryv1.LabelServiceName]:
			next := have[i].DeepCopy()
			next.Labels, next.Endpoints, next.Ports = w.Labels, w.Endpoints, w.Ports
			if _, err := api.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
				errs = append(errs, fmt.Errorf("update EndpointSlice %s: %w", w.Name, err))
			}
		}
	}
	for _, h := range have {
		if slices.ContainsFunc(want, func(w discoveryv1.EndpointSlice) bool { return w.Name == h.Name }) {
			continue
		}
		if err := api.Delete(ctx, h.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete EndpointSlice %s: %w", h.Name, err))
		}
	}
	return errors.Join(errs...)
}

// retry calls f until it succeeds or ctx ends.
func (c *Controller) retry(ctx context.Context, f func(context.Context) error) {
	_ = retry.Do(ctx, retry.Backoff{First: 200 * time.Millisecond, Limit: time.Minute}, func(err error, in time.Duration) {
		c.log.Warn("cannot write the endpoints of DNS, trying again", "error", err, "in", in)
	}, f) // an error means that ctx has ended
}
