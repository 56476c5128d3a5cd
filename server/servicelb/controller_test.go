package servicelb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/wellknown"
)

type rig struct {
	*testing.T
	*fake.Clientset
	events *record.FakeRecorder
}

func start(t *testing.T, client *fake.Clientset, cfg Config) *rig {
	t.Helper()
	r := &rig{t, client, record.NewFakeRecorder(1000)}
	cfg.Client = func() (kubernetes.Interface, error) { return client, nil }
	cfg.Recorder, cfg.Log = r.events, slog.New(slog.NewTextHandler(t.Output(), nil))
	c := New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { close(up) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-up
	return r
}

// becomes waits until the Service's status is as wanted.
func (r *rig) becomes(service, want string) {
	r.Helper()
	w, err := r.CoreV1().Services("ns").Watch(r.Context(), metav1.ListOptions{})
	if err != nil {
		r.Fatal(err)
	}
	defer w.Stop()
	late := time.After(20 * time.Second)
	for {
		s, err := r.CoreV1().Services("ns").Get(r.Context(), service, metav1.GetOptions{})
		if err != nil {
			r.Fatal(err)
		}
		var ips []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP || len(in.Ports) != len(s.Spec.Ports) {
				r.Fatalf("ingress %+v", in)
			}
			ips = append(ips, in.IP)
		}
		got := strings.Join(ips, " ")
		if c := meta.FindStatusCondition(s.Status.Conditions, Condition); c != nil {
			if (c.Status == metav1.ConditionTrue) != (len(ips) > 0) {
				r.Fatalf("condition %+v with %v", c, ips)
			}
			got += " " + c.Reason
		}
		if got = strings.TrimSpace(got); got == want {
			return
		}
		select {
		case <-w.ResultChan():
		case <-late:
			r.Fatalf("%s: got %q, want %q", service, got, want)
		}
	}
}

func TestController(t *testing.T) {
	ctx := t.Context()
	one, two := testNode("one", nil, "192.0.2.1"), testNode("two", nil, "192.0.2.2")
	r := start(t, fake.NewClientset(one, two, svc(1, "80")), Config{})
	svcs, nodes := r.CoreV1().Services("ns"), r.CoreV1().Nodes()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r.becomes("s1", "192.0.2.1 192.0.2.2 Served")
	must(svcs.Create(ctx, svc(2, "80"), metav1.CreateOptions{}))
	r.becomes("s2", "PortConflict")
	if err := svcs.Delete(ctx, "s1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.becomes("s2", "192.0.2.1 192.0.2.2 Served")

	// A host's own program, and then none.
	two.Annotations[wellknown.HostPorts] = "80/TCP"
	must(nodes.Update(ctx, two, metav1.UpdateOptions{}))
	r.becomes("s2", "192.0.2.1 ServedOnSomeNodes")
	two.Annotations[wellknown.HostPorts] = ""
	must(nodes.Update(ctx, two, metav1.UpdateOptions{}))
	r.becomes("s2", "192.0.2.1 192.0.2.2 Served")

	// Endpoints count where the policy is Local.
	must(svcs.Create(ctx, svc(3, "443", local), metav1.CreateOptions{}))
	r.becomes("s3", "NoAddress")
	yes, here := true, "two"
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s3-x",
		Labels: map[string]string{discoveryv1.LabelServiceName: "s3"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.1"}, NodeName: &here,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes}}}}
	must(r.DiscoveryV1().EndpointSlices("ns").Create(ctx, slice, metav1.CreateOptions{}))
	r.becomes("s3", "192.0.2.2 Served")
	if err := nodes.Delete(ctx, "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.becomes("s3", "NoAddress")
	r.becomes("s2", "192.0.2.1 Served")

	var seen string
	for len(r.events.Events) > 0 {
		seen += <-r.events.Events + "\n"
	}
	for _, want := range []string{"Warning PortConflict port 80/TCP of 192.0.2.1 belongs to Service ns/s1",
		"Warning ServedOnSomeNodes not on all nodes: port 80/TCP is used by a program of node two", "Normal Served"} {
		if !strings.Contains(seen, want) {
			t.Errorf("no event %q in\n%s", want, seen)
		}
	}
}

func TestDisabledTakesBack(t *testing.T) {
	given, foreign := svc(1, "80", has("192.0.2.1")), svc(2, "80", has("192.0.2.1"))
	given.Status.Conditions = []metav1.Condition{{Type: Condition, Status: metav1.ConditionTrue, Reason: Served},
		{Type: "other", Status: metav1.ConditionTrue, Reason: "x"}}
	r := start(t, fake.NewClientset(given, foreign), Config{Disabled: true})
	r.becomes("s1", "")
	r.becomes("s2", "192.0.2.1") // somebody else's
	s, _ := r.CoreV1().Services("ns").Get(t.Context(), "s1", metav1.GetOptions{})
	if fmt.Sprint(len(s.Status.Conditions)) != "1" {
		t.Errorf("conditions %+v", s.Status.Conditions)
	}
}

// TestARefusedServiceDelaysNoOther covers a Service whose status is refused, as by a webhook of its namespace: others
// get theirs at once, and it gets its own as soon as it may.
func TestARefusedServiceDelaysNoOther(t *testing.T) {
	client := fake.NewClientset(testNode("one", nil, "192.0.2.1"), svc(1, "80"))
	var refuse atomic.Bool
	var tries atomic.Int64
	refuse.Store(true)
	client.PrependReactor("patch", "services", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if p, ok := a.(clienttesting.PatchAction); !ok || p.GetName() != "s1" {
			return false, nil, nil
		}
		tries.Add(1)
		return refuse.Load(), nil, errors.New("a webhook refuses it")
	})
	r := start(t, client, Config{})
	eventually.True(t, "three attempts", func() bool { return tries.Load() >= 3 })
	for i := 2; i < 12; i++ {
		before := tries.Load()
		if _, err := r.CoreV1().Services("ns").Create(t.Context(), svc(i, fmt.Sprint(8000+i)),
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		r.becomes(fmt.Sprintf("s%d", i), "192.0.2.1 Served")
		if again := tries.Load() - before; again > 1 {
			t.Errorf("the refused Service was tried %d times for another", again)
		}
	}
	refuse.Store(false)
	s, err := r.CoreV1().Services("ns").Get(t.Context(), "s1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.ResourceVersion, s.Labels = "2", map[string]string{"changed": "yes"} // a Service that changes is tried at once
	if _, err := r.CoreV1().Services("ns").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.becomes("s1", "192.0.2.1 Served")
}

func TestFailures(t *testing.T) {
	f := failures{}
	s, other := svc(1, "80"), svc(2, "80")
	bad := errors.New("refused")
	if _, ok := f.next(); ok || f.waits(s) {
		t.Error("a Service that was never tried waits")
	}
	f.record(s, bad)
	first, _ := f.next()
	f.record(s, bad)
	if second, ok := f.next(); !ok || !second.After(first) || !f.waits(s) || f.waits(other) {
		t.Errorf("after two failures: %v, %v", second, f)
	}
	s.ResourceVersion = "9"
	if f.waits(s) {
		t.Error("a Service that has changed waits")
	}
	for range 100 {
		f.record(s, bad)
	}
	if at, _ := f.next(); time.Until(at) > time.Minute {
		t.Errorf("the pause grows to %v", time.Until(at))
	}
	f.record(other, bad)
	f.record(s, nil)
	if len(f) != 1 {
		t.Errorf("after a success: %v", f)
	}
	f.retain(nil)
	if len(f) > 0 {
		t.Errorf("of no Service: %v", f)
	}
}
