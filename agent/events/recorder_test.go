package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// TestRun: what was reported before Run is recorded too, and what the API server refuses keeps nothing behind it.
func TestRun(t *testing.T) {
	client := fake.NewClientset()
	made := make(chan *corev1.Event, 2*maxPending)
	client.PrependReactor("create", "events", func(a clienttesting.Action) (bool, runtime.Object, error) {
		e, _ := a.(clienttesting.CreateAction).GetObject().(*corev1.Event)
		if strings.HasPrefix(e.Message, "refused") {
			return true, nil, apierrors.NewForbidden(corev1.Resource("events"), e.Name, errors.New("not yours"))
		}
		made <- e
		return true, e, nil
	})
	r := New("n1", slog.New(slog.DiscardHandler))
	for i := range maxPending + 1 {
		r.Failing(fmt.Sprintf("part%d", i), errors.New("no room"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.Run(ctx, client.CoreV1()) }()
	if e := <-made; e.Message != "part1 does not run and is started again: no room" || e.Type != corev1.EventTypeWarning ||
		e.Reason != "PartFailed" || e.InvolvedObject.Name != "n1" || e.InvolvedObject.Kind != "Node" {
		t.Errorf("the oldest is replaced, and the next is recorded first: %+v", e)
	}
	for range maxPending - 1 {
		<-made
	}
	r.Failing("refused", errors.New("x"))
	r.Recovered("proxy")
	if e := <-made; e.Message != "proxy works again" || e.Type != corev1.EventTypeNormal || e.Reason != "PartWorksAgain" {
		t.Errorf("%+v", e)
	}
	cancel()
	<-ended
}

// TestLongMessages: the API takes 1024 bytes, and characters stay whole.
func TestLongMessages(t *testing.T) {
	e := report{part: "p", err: errors.New(strings.Repeat("€", 1000))}.event("n1")
	if len(e.Message) > 1024 || strings.ContainsRune(e.Message, '\uFFFD') || !strings.HasSuffix(e.Message, " …") {
		t.Errorf("%d bytes: %q", len(e.Message), e.Message)
	}
}
