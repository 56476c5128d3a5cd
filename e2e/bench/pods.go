package main

import (
	"context"
	"fmt"
	"math/rand"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

func pods(ctx context.Context, o options, s stack, r *report) error {
	k, _, _, _, err := up(ctx, s)
	if err != nil {
		return err
	}
	w, err := watchPods(ctx, k)
	if err != nil {
		return err
	}
	defer w.stop()
	start := func(name string) (time.Time, error) {
		t := time.Now()
		_, err := k.CoreV1().Pods(namespace).Create(ctx,
			benchPod(name, s.image(), "/bin/busybox", "sleep", "2147483647"), metav1.CreateOptions{})
		return t, err
	}
	remove := func(what string) error {
		one := int64(1)
		t := time.Now()
		if err := k.CoreV1().Pods(namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &one},
			metav1.ListOptions{LabelSelector: "bench=pod"}); err != nil {
			return err
		}
		if err := w.none(ctx); err != nil {
			return err
		}
		r.add(what, "s", time.Since(t).Seconds())
		return nil
	}
	var seq []float64
	for i := range o.n {
		name := fmt.Sprintf("one-%d", i)
		t, err := start(name)
		if err != nil {
			return err
		}
		ran, err := w.ran(ctx, name)
		if err != nil {
			return err
		}
		seq = append(seq, ran.Sub(t).Seconds()*1000)
	}
	r.add("one by one, p50", "ms", quantile(seq, .5))
	r.add("one by one, p99", "ms", quantile(seq, .99))
	if err := remove(fmt.Sprintf("delete of %d (grace 1 s)", o.n+1)); err != nil {
		return err
	}
	if err := sleep(ctx, 20*time.Second); err != nil { // as podlat does: the last ones' cleaning up is done
		return err
	}
	begun := time.Now()
	starts := make([]time.Time, o.burst)
	var g errgroup.Group
	for i := range o.burst {
		g.Go(func() (err error) { starts[i], err = start(fmt.Sprintf("many-%d", i)); return err })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var each []float64
	var last time.Time
	for i := range o.burst {
		ran, err := w.ran(ctx, fmt.Sprintf("many-%d", i))
		if err != nil {
			return err
		}
		each = append(each, ran.Sub(starts[i]).Seconds()*1000)
		if ran.After(last) {
			last = ran
		}
	}
	r.add(fmt.Sprintf("%d at once, all Running", o.burst), "s", last.Sub(begun).Seconds())
	r.add(fmt.Sprintf("%d at once, p50", o.burst), "ms", quantile(each, .5))
	return remove(fmt.Sprintf("delete of %d (grace 1 s)", o.burst))
}

// podWatch notes when each pod was first seen Running.
type podWatch struct {
	w  watch.Interface
	mu sync.Mutex
	at map[string]time.Time
	on map[string]bool
	// changed is closed and replaced at each event.
	changed chan struct{}
}

func watchPods(ctx context.Context, k *kubernetes.Clientset) (*podWatch, error) {
	wi, err := k.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{LabelSelector: "bench=pod"})
	if err != nil {
		return nil, err
	}
	p := &podWatch{w: wi, at: map[string]time.Time{}, on: map[string]bool{}, changed: make(chan struct{})}
	go func() {
		for e := range wi.ResultChan() {
			pod, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			p.mu.Lock()
			p.on[pod.Name] = true
			if _, seen := p.at[pod.Name]; !seen && pod.Status.Phase == corev1.PodRunning {
				p.at[pod.Name] = time.Now()
			}
			if e.Type == watch.Deleted {
				delete(p.on, pod.Name)
			}
			close(p.changed)
			p.changed = make(chan struct{})
			p.mu.Unlock()
		}
	}()
	return p, nil
}

func (p *podWatch) stop() { p.w.Stop() }

func (p *podWatch) wait(ctx context.Context, what string, cond func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, fmt.Errorf("waited 5 minutes for %s", what))
	defer cancel()
	for {
		p.mu.Lock()
		ok, ch := cond(), p.changed
		p.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ch:
		}
	}
}

func (p *podWatch) ran(ctx context.Context, name string) (t time.Time, err error) {
	err = p.wait(ctx, name, func() bool { var ok bool; t, ok = p.at[name]; return ok })
	return t, err
}

func (p *podWatch) none(ctx context.Context) error {
	return p.wait(ctx, "pods to go", func() bool { return len(p.on) == 0 })
}

// create makes ConfigMaps with 32 clients and returns how long each took, in ms, and all of them in s.
func create(ctx context.Context, s stack, ns string, n int) (each []float64, took float64, err error) {
	const clients = 32
	first, err := client(s)
	if err != nil {
		return nil, 0, err
	}
	if _, err := first.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}},
		metav1.CreateOptions{}); err != nil {
		return nil, 0, err
	}
	ks := make([]*kubernetes.Clientset, clients)
	for i := range ks {
		// Connections are there before the clock starts. A dialer of its own keeps clients from sharing one.
		if ks[i], err = client(s); err != nil {
			return nil, 0, err
		}
		if _, err := ks[i].CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
			return nil, 0, err
		}
	}
	var next atomic.Int64
	lat := make([][]float64, clients)
	g, gctx := errgroup.WithContext(ctx)
	begun := time.Now()
	for w := range clients {
		g.Go(func() error {
			const abc = "abcdefghijklmnopqrstuvwxyz0123456789"
			rnd, b := rand.New(rand.NewSource(int64(w))), make([]byte, 1024)
			for {
				i := next.Add(1) - 1
				if i >= int64(n) {
					return nil
				}
				for j := range b {
					b[j] = abc[rnd.Intn(len(abc))]
				}
				t := time.Now()
				if _, err := ks[w].CoreV1().ConfigMaps(ns).Create(gctx,
					&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%06d", i)},
						Data: map[string]string{"d": string(b)}}, metav1.CreateOptions{}); err != nil {
					return err
				}
				lat[w] = append(lat[w], time.Since(t).Seconds()*1000)
			}
		})
	}
	err = g.Wait()
	return slices.Concat(lat...), time.Since(begun).Seconds(), err
}
