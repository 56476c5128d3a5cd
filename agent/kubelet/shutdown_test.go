package kubelet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// shutPod is a pod of this node; its owner is KIND/NAME or "".
func shutPod(name, owner string, phase v1.PodPhase, reason string, age time.Duration, finalizers ...string) *v1.Pod {
	p := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, UID: types.UID(name), Finalizers: finalizers,
			CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))},
		Spec: v1.PodSpec{NodeName: "n1"}, Status: v1.PodStatus{Phase: phase, Reason: reason},
	}
	if kind, of, ok := strings.Cut(owner, "/"); ok {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: of, UID: types.UID(owner), Controller: &yes}}
	}
	return p
}

func TestPodsThatAShutdownEnded(t *testing.T) {
	const counting = batchv1.JobTrackingFinalizer
	counted := shutPod("counting", "Job/b", v1.PodFailed, "Terminated", time.Hour)
	objects := []runtime.Object{
		shutPod("web-old", "ReplicaSet/web", v1.PodFailed, "Terminated", time.Hour),
		shutPod("web-refused", "ReplicaSet/web", v1.PodFailed, "NodeShutdown", time.Hour),
		shutPod("web-new", "ReplicaSet/web", v1.PodRunning, "", 0),
		shutPod("evicted", "ReplicaSet/web", v1.PodFailed, "Evicted", time.Hour),
		shutPod("alone", "", v1.PodFailed, "Terminated", time.Hour),
		shutPod("succeeded", "Job/c", v1.PodSucceeded, "Terminated", time.Hour),
		shutPod("job-old", "Job/a", v1.PodFailed, "Terminated", time.Hour),
		shutPod("job-new", "Job/a", v1.PodRunning, "", 0),
		shutPod("counting", "Job/b", v1.PodFailed, "Terminated", time.Hour, counting),
		shutPod("counting-new", "Job/b", v1.PodRunning, "", 0),
		shutPod("gave-up", "Job/d", v1.PodFailed, "Terminated", time.Hour),
	}
	client := fake.NewClientset(objects...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	count := make(chan int, 1)
	go func() {
		n, err := sweep(ctx, client, "n1")
		count <- n
		done <- err
	}()
	left := func(gone ...string) bool {
		l, err := client.CoreV1().Pods("d").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Items {
			if slices.Contains(gone, p.Name) {
				return false
			}
		}
		return len(l.Items) == len(objects)-len(gone)
	}
	wait := func(what string, cond func() bool) {
		t.Helper()
		eventually.Nil(t, what, func() error {
			if cond() {
				return nil
			}
			l, _ := client.CoreV1().Pods("d").List(t.Context(), metav1.ListOptions{})
			var names []string
			for _, p := range l.Items {
				names = append(names, p.Name)
			}
			return fmt.Errorf("left %v", names)
		})
	}
	wait("those that are replaced go", func() bool { return left("web-old", "web-refused", "job-old") })
	if _, err := client.CoreV1().Pods("d").Update(t.Context(), counted, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait("the one that has been counted goes",
		func() bool { return left("web-old", "web-refused", "job-old", "counting") })
	cancel()
	if n, err := <-count, <-done; n != 4 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
}
