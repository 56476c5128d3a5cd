package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/e2e/cluster"
)

const namespace = "default"

// bench is the pod that every benchmark starts.
func benchPod(name, image string, command ...string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bench": "pod"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image,
			ImagePullPolicy: corev1.PullIfNotPresent, Command: command}}}}
}

// up starts a stack and waits for the node and one idle pod; t has the moments since the first exec.
func up(ctx context.Context, s stack) (k *kubernetes.Clientset, apiT, nodeT, podT time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 4*time.Minute, fmt.Errorf("%s is not up after 4 minutes", s.name()))
	defer cancel()
	t0, err := s.start(ctx)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	if k, err = apiReady(ctx, s); err != nil {
		return nil, 0, 0, 0, err
	}
	apiT = time.Since(t0)
	var g errgroup.Group
	g.Go(func() error {
		_, err := cluster.Until(ctx, k.CoreV1().Nodes(), metav1.ListOptions{}, func(n *corev1.Node) (bool, string) {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady {
					return c.Status == corev1.ConditionTrue, c.Message
				}
			}
			return false, "no condition"
		})
		nodeT = time.Since(t0)
		return err
	})
	g.Go(func() error {
		// Until the namespace has its account a pod is refused, so this asks again, as a Deployment would.
		for {
			_, err := k.CoreV1().Pods(namespace).Create(ctx,
				benchPod("idle", s.image(), "/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/bin"),
				metav1.CreateOptions{})
			if err == nil || apierrors.IsAlreadyExists(err) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			case <-time.After(20 * time.Millisecond):
			}
		}
		_, err := cluster.Until(ctx, k.CoreV1().Pods(namespace),
			metav1.ListOptions{FieldSelector: "metadata.name=idle"}, func(p *corev1.Pod) (bool, string) {
				return p.Status.Phase == corev1.PodRunning,
					fmt.Sprintf("%s %+v", p.Status.Phase, p.Status.ContainerStatuses)
			})
		podT = time.Since(t0)
		return err
	})
	return k, apiT, nodeT, podT, g.Wait()
}

func startup(ctx context.Context, o options, s stack, r *report) error {
	var a, n, p, cpu []float64
	for range o.runs {
		_, at, nt, pt, err := up(ctx, s)
		if err != nil {
			return err
		}
		a, n, p = append(a, at.Seconds()), append(n, nt.Seconds()), append(p, pt.Seconds())
		var sum float64
		for _, u := range usageOf(s) {
			sum += u.cpu
		}
		cpu = append(cpu, sum)
		if err := s.stop(); err != nil {
			return err
		}
	}
	r.add("API ready", "s", median(a))
	r.add("node Ready", "s", median(n))
	r.add("first pod Running", "s", median(p))
	r.add("CPU until then", "s", median(cpu))
	return nil
}

// mostPods is how many pods of footprint a node takes besides those that it has anyway: upstream's limit is 110.
const mostPods = 100

// more starts further idle pods, and waits until all run.
func more(ctx context.Context, k *kubernetes.Clientset, s stack, n int) error {
	w, err := watchPods(ctx, k)
	if err != nil {
		return err
	}
	defer w.stop()
	for i := range n {
		pod := benchPod(fmt.Sprintf("idle-%d", i), s.image(), "/bin/busybox", "sleep", "2147483647")
		if _, err := k.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for i := range n {
		if _, err := w.ran(ctx, fmt.Sprintf("idle-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

func footprint(ctx context.Context, o options, s stack, r *report) error {
	k, _, _, _, err := up(ctx, s)
	if err != nil {
		return err
	}
	if err := more(ctx, k, s, o.pods-1); err != nil {
		return err
	}
	if err := sleep(ctx, o.settle); err != nil {
		return err
	}
	audit := func() float64 { return 0 }
	if a, ok := s.(audited); ok {
		audit = a.auditBytes
	}
	before, begun, logged := usageOf(s), time.Now(), audit()
	if err := sleep(ctx, o.over); err != nil {
		return err
	}
	after, took := usageOf(s), time.Since(begun)
	if written := audit() - logged; written > 0 { // it may have been rotated
		r.add("audit log: written", "MB/h", written/1e6/took.Hours())
	}
	groups := map[string]*usage{}
	var total usage
	for id, u := range after {
		d := u.since(before[id])
		if workload(u.name) {
			continue
		}
		g := groups[u.name]
		if g == nil {
			g = &usage{name: u.name}
			groups[u.name] = g
		}
		g.add(d)
		total.add(d)
	}
	names := make([]string, 0, len(groups))
	for n := range groups {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int { return int(groups[b].pss - groups[a].pss) })
	groups["all"] = &total
	for _, n := range append(names, "all") {
		g := groups[n]
		r.add(n+": PSS", "MiB", g.pss/1024)
		r.add(n+": RSS", "MiB", g.rss/1024)
		r.add(n+": anonymous", "MiB", g.anon/1024)
		r.add(n+": CPU", "s/min", g.cpu/took.Minutes())
		r.add(n+": written", "MB/h", g.written/1e6/took.Hours())
	}
	return nil
}

func api(ctx context.Context, o options, s stack, r *report) error {
	k, _, _, _, err := up(ctx, s)
	if err != nil {
		return err
	}
	if err := sleep(ctx, 15*time.Second); err != nil { // what the start left to do is done
		return err
	}
	each, took, err := create(ctx, s, "bench", o.count)
	if err != nil {
		return err
	}
	r.more("creates", "1/s", float64(o.count)/took)
	r.add("create, p50", "ms", quantile(each, .5))
	r.add("create, p99", "ms", quantile(each, .99))
	cms := k.CoreV1().ConfigMaps("bench")
	timed := func(name string, times int, f func(i int) error) error {
		var d []float64
		for i := range times {
			t := time.Now()
			if err := f(i); err != nil {
				return err
			}
			d = append(d, time.Since(t).Seconds()*1000)
		}
		r.add(name, "ms", quantile(d, .5))
		return nil
	}
	list := func(opts metav1.ListOptions) func(int) error {
		return func(int) error {
			l, err := cms.List(ctx, opts)
			if err == nil && len(l.Items) < o.count {
				err = fmt.Errorf("%d of %d are listed", len(l.Items), o.count)
			}
			return err
		}
	}
	if err := sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	if err := timed(fmt.Sprintf("LIST of %d", o.count), 10, list(metav1.ListOptions{})); err != nil {
		return err
	}
	if err := timed(fmt.Sprintf("LIST of %d from the cache", o.count), 10,
		list(metav1.ListOptions{ResourceVersion: "0"})); err != nil {
		return err
	}
	return timed("GET", 200, func(i int) error {
		_, err := cms.Get(ctx, fmt.Sprintf("c%06d", i*o.count/200), metav1.GetOptions{})
		return err
	})
}

func writes(ctx context.Context, o options, s stack, r *report) error {
	if _, _, _, _, err := up(ctx, s); err != nil {
		return err
	}
	if err := sleep(ctx, 15*time.Second); err != nil {
		return err
	}
	d0, b0 := diskNow(), usageOf(s)
	each, took, err := create(ctx, s, "bench", o.count)
	if err != nil {
		return err
	}
	d1, b1 := diskNow(), usageOf(s)
	var bytes, cpu float64
	for id, u := range b1 {
		d := u.since(b0[id])
		bytes += d.written
		cpu += d.cpu
	}
	r.more("durable creates", "1/s", float64(o.count)/took)
	r.add("create, p99", "ms", quantile(each, .99))
	r.add("bytes written a create", "KiB", bytes/1024/float64(o.count))
	r.add("device flushes a create", "", (d1.flushes-d0.flushes)/float64(o.count))
	r.more("creates a device flush", "", float64(o.count)/math.Max(1, d1.flushes-d0.flushes))
	r.add("CPU a create", "ms", cpu*1000/float64(o.count))
	return nil
}

// disk is what the block device under the machines' folder has done since boot: all of the host's.
type disk struct{ written, flushes float64 }

func diskNow() (d disk) {
	raw, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return d
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 19 || strings.HasPrefix(f[2], "loop") || strings.HasPrefix(f[2], "ram") || partition(f[2]) {
			continue
		}
		w, _ := strconv.ParseFloat(f[9], 64)
		n, _ := strconv.ParseFloat(f[18], 64)
		d.written += w * 512
		d.flushes += n
	}
	return d
}

func partition(dev string) bool {
	_, err := os.Stat("/sys/class/block/" + dev + "/partition")
	return err == nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func median(v []float64) float64 { return quantile(v, .5) }

// quantile is by nearest rank.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}
