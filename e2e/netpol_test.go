package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// TestNetworkPolicy: policies come, change and go on a cluster that runs; DNS, probes and Services go on
// as they should.
func TestNetworkPolicy(t *testing.T) {
	e := share(t)
	e.apply(fmt.Sprintf(web, e.ns))
	e.client("cli")
	e.client("friend")
	srv := e.pod(named("srv"), isReady)
	ip := srv.Status.PodIP

	// reaches waits until asking from a pod ends as wanted: enforcement follows the API server by a moment.
	reaches := func(e *env, from, network, to string, want bool) {
		e.Helper()
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.in(from, network, to)
			if (err == nil) != want {
				return fmt.Errorf("%s asks %s %s: %q, %w", from, network, to, out, err)
			}
			return nil
		}))
	}
	e.sub("nothing without a policy", func(e *env) {
		reaches(e, "cli", "tcp", ip+":8081", true)
		reaches(e, "cli", "tcp", "cluster:81", true)
	})
	e.sub("default deny", func(e *env) {
		e.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`)
		reaches(e, "cli", "tcp", ip+":8081", false)
		reaches(e, "cli", "udp", ip+":8081", false)
		reaches(e, "cli", "tcp", e.service("cluster").Spec.ClusterIP+":81", false)
		// Names are answered by the node, whatever policies say.
		if out, err := e.in("cli", "lookup", "host", "cluster."+e.ns+".svc.cluster.local"); err != nil ||
			!strings.Contains(out, e.service("cluster").Spec.ClusterIP) {
			e.Errorf("name of a Service: %q, %v", out, err)
		}
		status, err := e.Umiak(e.soon(), "status")
		if err != nil || !strings.Contains(status, "Network policies") {
			e.Errorf("umiak status: %v\n%s", err, status)
		}
	})
	e.sub("allow one", func(e *env) {
		e.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-srv}
spec:
  podSelector: {matchLabels: {app: srv}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: friend}}}]
    ports: [{port: echo}, {port: dgram, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-friend}
spec:
  podSelector: {matchLabels: {app: friend}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: srv}}}]
`)
		reaches(e, "friend", "tcp", "cluster:81", true)
		reaches(e, "friend", "udp", "cluster:81", true)
		reaches(e, "friend", "get", "http://cluster/", false)
		reaches(e, "cli", "tcp", "cluster:81", false)
	})
	e.sub("a pod that starts", func(e *env) {
		// What it is allowed works with its first packet, what it is not does not.
		for i, want := range []string{"friend", "stranger"} {
			name := fmt.Sprintf("first-%d", i)
			e.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "registry.test/app:1", command: [/bin/app, tcp, "%s:8081"]}]
`, name, want, ip))
			p := e.pod(named(name), ended)
			if got, allowed := string(p.Status.Phase), want == "friend"; (got == "Succeeded") != allowed {
				e.Errorf("%s: %s", want, describe(p))
			}
		}
	})
	e.sub("probes", func(e *env) {
		before := e.pod(named("srv"), isReady)
		time.Sleep(4 * time.Second) // nothing is to happen: the probe, each second, must not fail
		if after := e.pod(named("srv"), isReady); after.ResourceVersion != before.ResourceVersion {
			e.Errorf("the pod has changed: %s", describe(after))
		}
	})
	e.sub("open connections end", func(e *env) {
		c, err := e.M.Dial(e.ctx, "tcp", net.JoinHostPort(ip, "8081")) // from the node: always passes
		e.must(err)
		defer c.Close()
		stream := make(chan error, 1)
		go func() {
			// nc ends when its connection does.
			_, err := e.exec(e.ctx, "friend", "", "sh", "-c", "(while sleep 0.2; do echo x || exit 1; done) | nc "+ip+
				" 8081 >/tmp/out; echo ended")
			stream <- err
		}()
		e.must(cluster.Eventually(e.soon(), func(context.Context) error {
			out, err := e.exec(e.soon(), "friend", "", "sh", "-c", "wc -l </tmp/out")
			if err == nil && len(strings.TrimSpace(out)) < 1 || strings.TrimSpace(out) == "0" {
				err = fmt.Errorf("%q", out)
			}
			return err
		}))
		e.must(e.Kube.NetworkingV1().NetworkPolicies(e.ns).Delete(e.ctx, "to-srv", metav1.DeleteOptions{}))
		select {
		case <-stream:
		case <-time.After(patience):
			e.Error("a forbidden connection goes on")
		}
		if _, err := c.Write([]byte("still here\n")); err != nil {
			e.Errorf("the node's connection: %v", err)
		}
	})
	e.sub("policies go", func(e *env) {
		for _, n := range []string{"deny", "from-friend"} {
			e.must(e.Kube.NetworkingV1().NetworkPolicies(e.ns).Delete(e.ctx, n, metav1.DeleteOptions{}))
		}
		reaches(e, "cli", "tcp", "cluster:81", true)
	})
}

// TestNetworkPolicyCost: what waiting for policies costs a pod's start, and that it costs little.
func TestNetworkPolicyCost(t *testing.T) {
	e := own(t, cluster.Options{Name: "netpolcost"}).ready()
	start := func(name string) time.Duration {
		begun := time.Now()
		e.apply(fmt.Sprintf(pod, name, name))
		e.pod(named(name), running)
		took := time.Since(begun)
		now := int64(0)
		e.must(e.Kube.CoreV1().Pods(e.ns).Delete(e.ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}))
		return took
	}
	median := func(prefix string) time.Duration {
		var all []time.Duration
		for i := range 15 {
			all = append(all, start(fmt.Sprintf("%s-%d", prefix, i)))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	start("warm")
	without := median("without")
	e.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: all}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}
`)
	with := median("with")
	t.Logf("a pod runs after %s without policies, %s with one (medians of 15)", without, with)
	if with > without+50*time.Millisecond+without/4 {
		t.Errorf("policies cost a pod's start %s", with-without)
	}
}
