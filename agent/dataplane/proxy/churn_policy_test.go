package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"

	"github.com/umiak-io/umiak/agent/dataplane/netpol"
)

// policyChurn changes network policies in the lab. Each of them lets TestChurn's own traffic through, in ever
// other ways, and forbids something else.
type policyChurn struct {
	testing.TB
	c       cluster
	r       *rand.Rand
	running *policyRun
	changes int
}

func newPolicyChurn(t testing.TB, c cluster, r *rand.Rand) *policyChurn {
	for name, ip := range labPods {
		node := "node"
		if name == "remote" {
			node = "other"
		}
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{"app": name}},
			Spec: v1.PodSpec{NodeName: node,
				Containers: []v1.Container{{Ports: []v1.ContainerPort{{Name: "http", ContainerPort: 8080,
					Protocol: v1.ProtocolTCP}}}}},
			Status: v1.PodStatus{Phase: v1.PodRunning, PodIP: ip, PodIPs: []v1.PodIP{{IP: ip}}}}
		if _, err := c.CoreV1().Pods("default").Create(context.Background(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.CoreV1().Namespaces().Create(context.Background(),
		&v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p := &policyChurn{TB: t, c: c, r: r}
	p.running = p.run()
	return p
}

// policyRun is what enforces policies, as an agent has one.
type policyRun struct {
	cancel  context.CancelFunc
	ended   chan error
	factory informers.SharedInformerFactory
	*netpol.Policies
	// wrote is whether one of its full syncs found something to write.
	mu    sync.Mutex
	wrote bool
}

func (p *policyChurn) run() *policyRun {
	p.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	run := &policyRun{cancel: cancel, ended: make(chan error, 1),
		factory: informers.NewSharedInformerFactory(p.c.Clientset, 0)}
	var err error
	run.Policies, err = netpol.New(netpol.Config{NodeName: "node",
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		Client:      p.c.Clientset, Informers: run.factory, Log: slog.New(run)})
	if err != nil {
		p.Fatal(err)
	}
	run.factory.Start(ctx.Done())
	ready := make(chan struct{})
	var once sync.Once
	go func() { run.ended <- run.Run(ctx, func() { once.Do(func() { close(ready) }) }) }()
	select {
	case <-ready:
	case err := <-run.ended:
		p.Fatalf("policies: %v", err)
	case <-time.After(30 * time.Second):
		p.Fatal("policies are not in force after 30 s")
	}
	return run
}

func (r *policyRun) stop() error {
	r.cancel()
	err := <-r.ended
	r.factory.Shutdown()
	return err
}

// Enabled and the rest make it a log handler: what a full sync did is said in the log.
func (r *policyRun) Enabled(context.Context, slog.Level) bool { return true }
func (r *policyRun) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *policyRun) WithGroup(string) slog.Handler            { return r }
func (r *policyRun) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "replaced":
			r.wrote = r.wrote || a.Value.Bool()
		case "added", "deleted":
			r.wrote = r.wrote || a.Value.Int64() != 0
		}
		return true
	})
	return nil
}

// rest waits until a second process that begins from nothing finds the kernel as it wants it.
func (p *policyChurn) rest() {
	p.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		fresh := p.run()
		if err := fresh.stop(); err != nil {
			p.Fatal(err)
		}
		fresh.mu.Lock()
		wrote := fresh.wrote
		fresh.mu.Unlock()
		if !wrote {
			return
		}
		if time.Now().After(end) {
			p.Fatalf("at rest the policies in the kernel differ from a fresh build: %+v", p.running.Status())
		}
	}
}

func (p *policyChurn) stop() {
	if err := p.running.stop(); err != nil {
		p.Error(err)
	}
	if err := netpol.Cleanup(context.Background()); err != nil {
		p.Error(err)
	}
}

// change makes, replaces or deletes a policy.
func (p *policyChurn) change() {
	p.changes++
	ctx, api := context.Background(), p.c.NetworkingV1().NetworkPolicies("default")
	np := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default",
		Name: fmt.Sprintf("p%d", p.r.IntN(8)), Generation: int64(p.changes)}, Spec: p.spec()}
	if p.r.IntN(3) == 0 {
		_ = api.Delete(ctx, np.Name, metav1.DeleteOptions{}) // it may not be there
		return
	}
	if _, err := api.Update(ctx, np, metav1.UpdateOptions{}); err != nil {
		if _, err = api.Create(ctx, np, metav1.CreateOptions{}); err != nil {
			p.Fatal(err)
		}
	}
}

// spec selects some pods and lets in and out what the traffic of TestChurn needs: the client and pods, to
// port 8080 of pods.
func (p *policyChurn) spec() networking.NetworkPolicySpec {
	tcp, port, named, last := v1.ProtocolTCP, intstr.FromInt32(8080), intstr.FromString("http"), int32(9000)
	low := intstr.FromInt32(8000)
	ports := [][]networking.NetworkPolicyPort{nil, {{Protocol: &tcp, Port: &port}}, {{Protocol: &tcp, Port: &named}},
		{{Protocol: &tcp, Port: &low, EndPort: &last}}}[p.r.IntN(4)]
	block := func(cidr string, except ...string) networking.NetworkPolicyPeer {
		return networking.NetworkPolicyPeer{IPBlock: &networking.IPBlock{CIDR: cidr, Except: except}}
	}
	all := networking.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
	peers := [][]networking.NetworkPolicyPeer{nil, {block("0.0.0.0/0", "198.51.100.0/24")},
		{block("203.0.113.0/24", "203.0.113.64/26"), all}}[p.r.IntN(3)]
	spec := networking.NetworkPolicySpec{}
	if p.r.IntN(2) == 0 {
		spec.PodSelector.MatchLabels = map[string]string{"app": []string{"a", "b", "remote"}[p.r.IntN(3)]}
	}
	if p.r.IntN(3) > 0 {
		spec.PolicyTypes = append(spec.PolicyTypes, networking.PolicyTypeIngress)
		spec.Ingress = []networking.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
	}
	if p.r.IntN(2) == 0 || len(spec.PolicyTypes) == 0 {
		spec.PolicyTypes = append(spec.PolicyTypes, networking.PolicyTypeEgress)
		spec.Egress = []networking.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	}
	return spec
}
