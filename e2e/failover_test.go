package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// throughBalancer is a client that talks to the API as a node's own programs do: to the load balancer on the
// agent's machine.
func (e *env) throughBalancer(agent *cluster.Cluster) kubernetes.Interface {
	e.Helper()
	rc := rest.CopyConfig(e.REST)
	rc.Host, rc.ServerName = "https://127.0.0.1:6444", "kubernetes"
	// A function of its own, or client-go would share one connection.
	rc.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		return agent.M.Dial(ctx, network, addr)
	}
	rc.QPS = -1
	k, err := kubernetes.NewForConfig(rc)
	e.must(err)
	return k
}

// request is one that a writer made.
type request struct {
	begun, ended time.Time
	err          error
}

// writer makes ConfigMaps one after the other, and keeps those that were acknowledged.
type writer struct {
	id   int
	ns   string
	pace time.Duration // between two requests

	mu       sync.Mutex
	kube     kubernetes.Interface
	requests []request
	acked    []string
}

// use has a writer write through another client from now on.
func (w *writer) use(kube kubernetes.Interface) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kube = kube
}

// pace is between two requests of a writer that is one of few.
const pace = 100 * time.Millisecond

// run writes until ctx ends. A request that has failed is made again with the same name: it may have been done.
func (w *writer) run(ctx context.Context) {
	tick := time.NewTicker(w.pace)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		name := fmt.Sprintf("w%d-%d", w.id, n)
		w.mu.Lock()
		kube := w.kube
		w.mu.Unlock()
		r := request{begun: time.Now()}
		_, r.err = kube.CoreV1().ConfigMaps(w.ns).Create(ctx,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(r.err) {
			r.err = nil
		}
		if r.ended = time.Now(); ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.requests = append(w.requests, r)
		if r.err == nil {
			w.acked = append(w.acked, name)
			n++
		}
		w.mu.Unlock()
	}
}

// writers run until the end of the test or stop.
type writers []*writer

func (e *env) writers(n int, agent *cluster.Cluster) (_ writers, stop func()) {
	e.Helper()
	ctx, cancel := context.WithCancel(e.Context())
	var wg sync.WaitGroup
	var out writers
	for i := range n {
		w := &writer{id: i, kube: e.throughBalancer(agent), ns: e.ns, pace: pace}
		out = append(out, w)
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.run(ctx)
		}()
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	e.Cleanup(stop)
	return out, stop
}

// between says how the writers fared from one moment to another: the most requests that failed for one of them, the
// longest time in which one of them could not write, and the errors.
func (all writers) between(from, to time.Time) (failed int, pause time.Duration, why []string) {
	for _, w := range all {
		w.mu.Lock()
		n, last := 0, from
		for _, r := range w.requests {
			if r.ended.Before(from) || !r.ended.Before(to) {
				continue
			}
			if r.err != nil {
				n++
				why = append(why, fmt.Sprintf("writer %d, +%.1f s, after %.1f s: %v", w.id, r.ended.Sub(from).Seconds(),
					r.ended.Sub(r.begun).Seconds(), r.err))
				continue
			}
			if gap := r.ended.Sub(last); gap > 3*time.Second {
				why = append(why, fmt.Sprintf("writer %d could not write for %.1f s until +%.1f s; the last request took %.1f s", w.id, gap.Seconds(), r.ended.Sub(from).Seconds(), r.ended.Sub(r.begun).Seconds()))
			}
			pause = max(pause, r.ended.Sub(last))
			last = r.ended
		}
		pause = max(pause, to.Sub(last)) // it may not have written again
		failed = max(failed, n)
		w.mu.Unlock()
	}
	return failed, pause, why
}

// nothingLost compares what was acknowledged with what is there.
func (e *env) nothingLost(all writers) {
	e.Helper()
	list, err := e.Kube.CoreV1().ConfigMaps(e.ns).List(e.soon(), metav1.ListOptions{})
	e.must(err)
	there := map[string]bool{}
	for _, c := range list.Items {
		there[c.Name] = true
	}
	acked := 0
	for _, w := range all {
		w.mu.Lock()
		for _, name := range w.acked {
			if acked++; !there[name] {
				e.Errorf("%s was acknowledged and is lost", name)
			}
		}
		w.mu.Unlock()
	}
	e.Logf("%d writes acknowledged", acked)
}

// leader asks a server which of them leads.
func leader(ctx context.Context, servers ...*cluster.Cluster) (*cluster.Cluster, error) {
	var errs []error
	for _, s := range servers {
		out, err := s.Umiak(ctx, "status", "-o", "json")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var st struct {
			Sections []struct {
				Rows []struct{ Name, State string }
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			return nil, err
		}
		for _, sec := range st.Sections {
			for _, r := range sec.Rows {
				if r.State != "leader" {
					continue
				}
				for _, l := range servers {
					if r.Name == "member "+l.M.Name {
						return l, nil
					}
				}
			}
		}
		errs = append(errs, fmt.Errorf("%s knows no leader", s.M.Name))
	}
	return nil, errors.Join(errs...)
}

// TestFailover: the leader of three servers is cut off and killed in turns while clients write through an agent's load
// balancer; then all servers are restarted one after the other. UMIAK_FAILOVER says for how long, as 10m, and has more
// restarts.
func TestFailover(t *testing.T) {
	// Not beside others: what it counts are requests that fail, also because a machine has too much to do.
	rounds, rolls, every := 2, 1, 20*time.Second
	if s := os.Getenv("UMIAK_FAILOVER"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatalf("UMIAK_FAILOVER: %v", err)
		}
		rounds, rolls = int(d/every), 5
	}
	l := lan(t)
	only := func(more map[string]string) map[string]string {
		more["disable-agent"] = "true"
		return more
	}
	e := own(t, cluster.Options{Name: "s1", LAN: l, Settings: only(map[string]string{"cluster-init": "true"}),
		Images: []string{}})
	e.must(e.APIReady(e.within(2 * patience)))
	e.namespace()
	servers := []*cluster.Cluster{e.Cluster}
	for _, name := range []string{"s2", "s3"} {
		s := off(e.T, cluster.Options{Name: name, LAN: l, Settings: only(map[string]string{}),
			Images: []string{}}).Cluster
		line := strings.Fields(e.token("--kind", "server", "--print-join-command"))
		e.must(s.Start(line[2:]...))
		e.must(s.APIReady(e.within(2 * patience)))
		servers = append(servers, s)
	}
	agent := e.agentOn(l, "a1", nil)
	e.agentReady(agent)
	e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
		out, err := agent.Umiak(ctx, "status")
		if err == nil && strings.Count(out, ":6443  answers") != 3 {
			err = errors.New(out)
		}
		return err
	}))
	all, stop := e.writers(8, agent)

	tick := time.NewTicker(every)
	defer tick.Stop()
	next := func() {
		select {
		case <-tick.C:
		case <-e.Context().Done():
		}
	}
	<-tick.C
	for i := range rounds {
		lead, err := leader(e.soon(), servers...)
		e.must(err)
		begun, what := time.Now(), "killed"
		if i%2 == 0 {
			e.must(lead.Kill())
			e.must(lead.Start())
		} else {
			what = "cut off"
			e.must(l.Cut(lead.M))
			time.AfterFunc(every/2, func() { _ = l.Mend(lead.M) })
		}
		next()
		failed, pause, why := all.between(begun, time.Now())
		t.Logf("round %d: %s, the leader, %s: at most %d failed requests of a client, the longest pause %.1f s", i+1,
			lead.M.Name, what, failed, pause.Seconds())
		if pause > 4*time.Second {
			t.Log(strings.Join(why, "\n"))
		}
		if failed > 1 {
			t.Errorf("a client saw %d failed requests:\n%s", failed, strings.Join(why, "\n"))
		}
	}
	// Every server is ready before the next is restarted, as in an upgrade of a cluster.
	e.must(e.serve(servers))
	begun := time.Now()
	for range rolls {
		for _, s := range servers {
			e.must(s.Stop(e.soon()))
			e.must(s.Start())
			e.must(e.serve(servers))
		}
	}
	failed, pause, why := all.between(begun, time.Now())
	t.Logf("%d rolling restarts: at most %d failed requests of a client, the longest pause %.1f s", rolls, failed,
		pause.Seconds())
	if failed > 0 {
		t.Errorf("requests failed while servers were restarted:\n%s", strings.Join(why, "\n"))
	}
	stop()
	e.nothingLost(all)
}

// serve waits until all servers answer and are members that have caught up.
func (e *env) serve(servers []*cluster.Cluster) error {
	for _, s := range servers {
		if err := s.APIReady(e.within(2 * patience)); err != nil {
			return fmt.Errorf("server %s: %w", s.M.Name, err)
		}
	}
	return nil
}
