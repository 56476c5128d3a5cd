package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/machine"
)

// serverOn makes a machine on the server's network that is to be another server.
func (e *env) serverOn(l *machine.LAN, name string, settings map[string]string) *cluster.Cluster {
	e.Helper()
	return off(e.T, cluster.Options{Name: name, LAN: l, Settings: settings}).Cluster
}

// joinServer starts a server by the line that the first one prints, and waits until it serves.
func (e *env) joinServer(c *cluster.Cluster) {
	e.Helper()
	line := strings.Fields(e.token("--kind", "server", "--print-join-command", "--single-use"))
	if len(line) != 6 || line[1] != "server" {
		e.Fatalf("the line to join is %q", line)
	}
	e.must(c.Start(line[2:]...))
	e.must(c.Ready(e.within(2 * patience)))
}

// agentReady starts an agent by a line with a token, and waits for its node and its images.
func (e *env) agentReady(a *cluster.Cluster) {
	e.Helper()
	line := strings.Fields(e.token("--print-join-command"))
	e.must(a.Start(line[1:]...))
	e.nodeReady(a.M.Name, a)
	e.must(a.ImagesReady(e.soon()))
}

// through is e as seen through another server.
func (e *env) through(c *cluster.Cluster) *env {
	o := *e
	o.Cluster = c
	return &o
}

// TestThreeServers: three servers and two agents that are far from each other join by one line each and are one
// cluster.
func TestThreeServers(t *testing.T) {
	// Not beside others: five machines are enough for one.
	l, err := machine.NewLAN(machine.LANOptions{Delay: 20 * time.Millisecond, Loss: 0.01})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	e := own(t, cluster.Options{Name: "s1", LAN: l, Settings: map[string]string{"cluster-init": "true"}}).ready()
	s2, s3 := e.serverOn(l, "s2", nil), e.serverOn(l, "s3", nil)
	e.joinServer(s2)
	e.sub("other settings than the cluster's", func(e *env) {
		_, err := s3.M.Run(e.soon(), "umiak", "server", "--server", e.url(), "--token", e.token("--kind", "server"),
			"--cluster-cidr", "10.99.0.0/16", "--flannel-backend", "host-gw", "--disable-kube-proxy", "--disable-network-policy")
		for _, want := range []string{`cluster-cidr is "10.99.0.0/16" here and "10.42.0.0/16" in the cluster`,
			`flannel-backend is "host-gw" here and "vxlan"`, `disable-kube-proxy is "true" here and not set in the cluster`,
			`disable-network-policy is "true" here and not set in the cluster`} {
			if err == nil || !strings.Contains(err.Error(), want) {
				e.Errorf("got %v, want %s", err, want)
			}
		}
	})
	e.joinServer(s3)
	a1, a2 := e.agentOn(l, "a1", nil), e.agentOn(l, "a2", nil)
	_, err = a2.M.Run(e.soon(), "nft", door("udp dport 8472 accept")) // the overlay, and no port
	e.must(err)
	e.agentReady(a1)
	e.agentReady(a2)

	servers := []*cluster.Cluster{e.Cluster, s2, s3}
	e.sub("the members know each other", func(e *env) {
		for _, c := range servers {
			e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
				out, err := c.Umiak(ctx, "status")
				if err == nil && (strings.Count(out, "follower") != 2 || strings.Count(out, "leader") != 1) {
					err = errors.New("not one leader and two followers")
				}
				if err != nil {
					return fmt.Errorf("status of %s: %w\n%s", c.M.Name, err, out)
				}
				return nil
			}))
		}
	})
	nodes := slices.Concat(servers, []*cluster.Cluster{a1, a2})
	for _, c := range nodes {
		e.apply(fmt.Sprintf(onNode, "p"+c.M.Name, c.M.Name))
	}
	ips := map[string]string{}
	for _, c := range nodes {
		ips[c.M.Name] = e.pod(named("p"+c.M.Name), isReady).Status.PodIP
	}
	e.sub("pods and Services of all nodes", func(e *env) {
		for _, from := range nodes {
			for _, to := range nodes {
				e.must(cluster.Eventually(e.soon(), func(context.Context) error {
					for _, url := range []string{"http://svc-p" + to.M.Name + "/", "http://" + ips[to.M.Name] +
						":8080/"} {
						if out, err := e.in("p"+from.M.Name, "get", url); err != nil {
							return fmt.Errorf("%s gets %s: %q, %w", from.M.Name, url, out, err)
						}
					}
					return nil
				}))
			}
		}
	})
	e.sub("exec and logs through every server", func(e *env) {
		short := e.within(2 * time.Second)
		if c, err := e.M.Dial(short, "tcp", a2.M.IP+":10250"); err == nil {
			_ = c.Close()
			e.Error("the kubelet's port of a2 is open")
		}
		for _, s := range servers {
			by := e.through(s)
			for _, node := range nodes {
				if out, err := by.in("p"+node.M.Name, "get", "http://127.0.0.1:8080/"); err != nil || out == "" {
					e.Errorf("exec on %s through %s: %q, %v", node.M.Name, s.M.Name, out, err)
				}
				_ = by.logs("p"+node.M.Name, "c")
			}
		}
	})
	e.sub("the keys of Secrets are rotated", func(e *env) { e.rotatesKeysOfAll(servers...) })
	e.sub("a server that is deleted", func(e *env) {
		e.kubectl("delete", "node", "s3")
		select {
		case <-s3.Exited():
		case <-e.soon().Done():
			e.Fatalf("s3 runs on:\n%s", s3.LogTail(20))
		}
		if tail := s3.LogTail(20); !strings.Contains(tail, "not a member of the cluster any more") {
			e.Errorf("it does not say why it ends:\n%s", tail)
		}
		e.must(cluster.Eventually(e.soon(), func(ctx context.Context) error {
			out, err := s2.Umiak(ctx, "status")
			if err == nil && strings.Contains(out, "member s3") {
				err = errors.New(out)
			}
			return err
		}))
		e.must(s3.Start())
		select {
		case <-s3.Exited():
		case <-e.soon().Done():
			e.Fatalf("s3 runs again:\n%s", s3.LogTail(20))
		}
		_, err := s3.Umiak(e.soon(), "cleanup", "--purge")
		e.must(err)
		e.joinServer(s3)
	})
	e.sub("all servers are wiped, and one comes back from a snapshot", func(e *env) {
		before := map[string]*corev1.Pod{}
		for _, name := range []string{"pa1", "pa2"} {
			before[name] = e.pod(named(name), isReady)
		}
		out, err := e.Umiak(e.soon(), "snapshot", "save", "all")
		e.must(err)
		raw, err := os.ReadFile(e.hostPath(strings.TrimSpace(out)))
		e.must(err)
		for _, s := range servers {
			e.must(s.Kill())
			_, err := s.Umiak(e.soon(), "cleanup", "--purge")
			e.must(err)
		}
		e.must(os.WriteFile(e.hostPath("/var/lib/all"), raw, 0o600))
		e.must(e.Start("--cluster-reset", "--cluster-reset-restore-path", "/var/lib/all"))
		e.must(e.Cluster.Ready(e.within(2 * patience)))
		for name, old := range before {
			// The containers ran on, and the kubelets have found their server again.
			p := e.pod(named(name), isReady)
			if p.UID != old.UID || p.Status.ContainerStatuses[0].ContainerID != old.Status.ContainerStatuses[0].ContainerID {
				e.Errorf("%s is another: %s, was %s", name, describe(p), describe(old))
			}
		}
		for _, a := range []*cluster.Cluster{a1, a2} {
			e.nodeReady(a.M.Name, a)
			e.apply(fmt.Sprintf(onNode, "later"+a.M.Name, a.M.Name))
			e.pod(named("later"+a.M.Name), isReady)
		}
		e.kubectl("delete", "node", "s2") // its password is gone, so it is another machine
		e.joinServer(s2)
	})
}
