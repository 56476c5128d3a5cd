package informercache

import (
	"context"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestOnlyTheOwnNodeIsAskedFor(t *testing.T) {
	client := fake.NewClientset()
	asked := make(chan string, 10)
	client.PrependReactor("list", "nodes", func(a clienttesting.Action) (bool, runtime.Object, error) {
		list, _ := a.(clienttesting.ListAction)
		asked <- list.GetListRestrictions().Fields.String()
		return false, nil, nil
	})
	f := New(client, "this")
	_ = f.Core().V1().Nodes().Informer()
	ctx, cancel := context.WithCancel(t.Context())
	f.Start(ctx.Done())
	if got := <-asked; got != "metadata.name=this" {
		t.Errorf("asks for nodes with %q", got)
	}
	cancel()
	f.Shutdown()
}

func TestSlim(t *testing.T) {
	start := time.Now()
	slim := slimmer(start)
	slice := func(made time.Time) *discovery.EndpointSlice {
		s := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "s",
			Labels: map[string]string{discovery.LabelServiceName: "s"},
			Annotations: map[string]string{"other": "x",
				v1.EndpointsLastChangeTriggerTime: made.Format(time.RFC3339Nano)},
			ManagedFields: []metav1.ManagedFieldsEntry{{}}}}
		s.Endpoints = []discovery.Endpoint{{Addresses: []string{"10.0.0.1"},
			TargetRef: &v1.ObjectReference{Kind: "Pod", Name: "p", UID: "u"}}}
		out, err := slim(s)
		if err != nil {
			t.Fatal(err)
		}
		return out.(*discovery.EndpointSlice)
	}
	if s := slice(start.Add(-time.Minute)); s.Annotations != nil || s.ManagedFields != nil ||
		s.Labels[discovery.LabelServiceName] != "s" ||
		s.Endpoints[0].Addresses[0] != "10.0.0.1" || s.Endpoints[0].TargetRef.Name != "p" ||
		s.Endpoints[0].TargetRef.UID != "" {
		t.Errorf("old slice: %+v", s)
	}
	if s := slice(start.Add(time.Minute)); len(s.Annotations) != 1 ||
		s.Annotations[v1.EndpointsLastChangeTriggerTime] == "" {
		t.Errorf("new slice: %+v", s.Annotations)
	}
	svc := &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", UID: "u", Annotations: map[string]string{"a": "b"},
		Labels: map[string]string{"l": "m"}}, Spec: v1.ServiceSpec{ClusterIP: "10.43.0.1"}}
	if _, err := slim(svc); err != nil || svc.Annotations != nil || svc.Labels["l"] != "m" ||
		svc.Spec.ClusterIP != "10.43.0.1" || svc.UID != "u" {
		t.Errorf("service: %+v %v", svc, err)
	}
	if _, err := slim("tombstone"); err != nil {
		t.Error(err)
	}
}
