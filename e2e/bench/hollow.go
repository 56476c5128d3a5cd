package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// hollow measures one server with many nodes, on SQLite and on etcd: a program of its own, beside this one, plays the
// nodes, and takes processor time from the server, so the latencies are upper bounds.
func hollow(ctx context.Context, o options, which stack, r *report) error {
	ours, ok := which.(*umiakStack)
	if !ok {
		return fmt.Errorf("hollow does not measure %s: its nodes join umiak", which.name())
	}
	for _, c := range []struct {
		name     string
		settings map[string]string
	}{
		{"SQLite", map[string]string{"disable-agent": "true"}},
		{"etcd", map[string]string{"disable-agent": "true", "cluster-init": "true"}},
	} {
		s := &umiakStack{settings: c.settings, dist: ours.dist}
		err := hollowOn(ctx, o, s, c.name, r)
		if e := s.stop(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

func hollowOn(ctx context.Context, o options, s *umiakStack, datastore string, r *report) error {
	if _, err := s.start(ctx); err != nil {
		return err
	}
	k, err := apiReady(ctx, s)
	if err != nil {
		return err
	}
	bin, err := filepath.Abs(".cache/bin/hollow")
	if err != nil {
		return err
	}
	// Kubemark makes its folders in /tmp, whatever TMPDIR says; so they go with the machine.
	if _, err := s.c.M.Run(ctx, "mount", "--bind", filepath.Join(s.c.M.Dir, "tmp"), "/tmp"); err != nil {
		return err
	}
	cmd := s.c.M.Command(ctx, bin, "-kubeconfig", cluster.Dirs().AdminKubeconfig(), "-nodes", fmt.Sprint(o.nodes))
	log, err := os.Create(filepath.Join(s.c.Evidence, "hollow.log"))
	if err != nil {
		return err
	}
	defer log.Close() //nolint:errcheck // a log
	cmd.Stdout, cmd.Stderr = log, log
	if err := s.c.M.Start(cmd); err != nil {
		return fmt.Errorf("start nodes: %w", err)
	}
	begun := time.Now()
	if err := eventually(ctx, func() (int, error) { return readyNodes(ctx, k) }, o.nodes,
		"nodes are ready"); err != nil {
		return fmt.Errorf("%w; see %s", err, log.Name())
	}
	r.add(datastore+": until all nodes are ready", "s", time.Since(begun).Seconds())

	begun = time.Now()
	pods := int32(o.nodes * o.podsPerNode)
	if err := makeDeployment(ctx, k, pods); err != nil {
		return err
	}
	ready := func() (int, error) {
		d, err := k.AppsV1().Deployments("default").Get(ctx, "hollow", metav1.GetOptions{})
		if err != nil {
			return 0, err
		}
		return int(d.Status.ReadyReplicas), nil
	}
	if err := eventually(ctx, ready, int(pods), "pods are ready"); err != nil {
		return fmt.Errorf("%w; see %s", err, log.Name())
	}
	r.add(datastore+": until all pods are ready", "s", time.Since(begun).Seconds())

	if err := sleep(ctx, o.settle); err != nil {
		return err
	}
	before := serverUsage(s)
	begun = time.Now()
	get, list, create, err := callsFor(ctx, k, o.nodes, o.over)
	if err != nil {
		return err
	}
	after := serverUsage(s).since(before)
	minutes := time.Since(begun).Minutes()
	r.add(datastore+": server, resident", "MiB", after.rss/1024)
	r.add(datastore+": server, anonymous", "MiB", after.anon/1024)
	r.add(datastore+": server, CPU", "s/min", after.cpu/minutes)
	r.add(datastore+": server, written", "MiB/min", after.written/minutes/(1<<20))
	r.add(datastore+": GET, p99", "ms", quantile(get, .99))
	r.add(datastore+": LIST of a node's pods, p99", "ms", quantile(list, .99))
	r.add(datastore+": create, p99", "ms", quantile(create, .99))
	return nil
}

// eventually asks once a second until enough are there. It gives up when nothing has come for two minutes.
func eventually(ctx context.Context, count func() (int, error), want int, what string) error {
	last, since := 0, time.Now()
	for {
		n, err := count()
		if err != nil {
			return err
		}
		if n >= want {
			return nil
		}
		if n > last {
			last, since = n, time.Now()
		}
		if time.Since(since) > 2*time.Minute {
			return fmt.Errorf("%d of %d %s, and no more for two minutes", n, want, what)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func readyNodes(ctx context.Context, k *kubernetes.Clientset) (int, error) {
	list, err := k.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, err
	}
	n := 0
	for _, node := range list.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				n++
			}
		}
	}
	return n, nil
}

func makeDeployment(ctx context.Context, k *kubernetes.Clientset, replicas int32) error {
	labels := map[string]string{"app": "hollow"}
	_, err := k.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "hollow"},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none:1"}}},
			}},
	}, metav1.CreateOptions{})
	return err
}

// serverUsage is that of the process that serves, without the nodes.
func serverUsage(s stack) usage {
	var sum usage
	for _, u := range usageOf(s) {
		if u.name == "umiak" {
			sum.add(u)
		}
	}
	return sum
}

// callsFor makes ten calls of each kind a second, one after the other, as a controller might, and returns how long
// each took in milliseconds.
func callsFor(ctx context.Context, k *kubernetes.Clientset, nodes int, d time.Duration) (get, list, create []float64,
	err error) {
	timed := func(to *[]float64, f func() error) error {
		t := time.Now()
		err := f()
		*to = append(*to, time.Since(t).Seconds()*1000)
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); {
		n := len(create)
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("hollow-%d", n)},
			Data: map[string]string{"text": "x"}}
		for _, err := range []error{
			timed(&get, func() error {
				_, err := k.CoreV1().Nodes().Get(ctx, fmt.Sprintf("hollow-%d", n%nodes), metav1.GetOptions{})
				return err
			}),
			timed(&list, func() error {
				_, err := k.CoreV1().Pods("default").List(ctx,
					metav1.ListOptions{FieldSelector: fmt.Sprintf("spec.nodeName=hollow-%d", n%nodes)})
				return err
			}),
			timed(&create, func() error {
				_, err := k.CoreV1().ConfigMaps("default").Create(ctx, cm, metav1.CreateOptions{})
				return err
			}),
		} {
			if err != nil {
				return nil, nil, nil, err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil, nil, ctx.Err()
		}
	}
	return get, list, create, nil
}
