package election

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// member is a server with one part that only the leader runs.
type member struct {
	*Election
	works, terms atomic.Int32
	cause        atomic.Pointer[error]
	stop         func()
	failed       chan error
}

// join starts a server. Its part may not run beside another's.
func join(t *testing.T, client *fake.Clientset, name string, atWork *atomic.Int32) *member {
	t.Helper()
	m := &member{Election: New(name, slog.New(slog.DiscardHandler)), failed: make(chan error, 2)}
	ctx, cancel := context.WithCancel(t.Context())
	parts, stopParts := context.WithCancel(ctx)
	done, partDone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := m.Run(ctx, client.CoordinationV1(), func() {}); err != nil {
			m.failed <- err
		}
	}()
	go func() {
		defer close(partDone)
		err := m.While(func(ctx context.Context, _ func()) error {
			if n := atWork.Add(1); n > 1 {
				t.Errorf("%d servers work at once", n)
			}
			defer atWork.Add(-1)
			m.works.Store(1)
			m.terms.Add(1)
			defer m.works.Store(0)
			<-ctx.Done()
			cause := context.Cause(ctx)
			m.cause.Store(&cause)
			time.Sleep(time.Second) // controllers take a moment
			return nil
		})(parts, func() {})
		if err != nil {
			m.failed <- err
		}
	}()
	m.stop = func() { // parts first, as lifecycle does
		stopParts()
		<-partDone
		cancel()
		<-done
	}
	t.Cleanup(m.stop)
	return m
}

func TestOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var cut atomic.Bool
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			if cut.Load() {
				return true, nil, apierrors.NewTimeoutError("no quorum", 1)
			}
			return false, nil, nil
		})
		var atWork atomic.Int32
		a := join(t, client, "a", &atWork)
		synctest.Wait()
		b := join(t, client, "b", &atWork)
		time.Sleep(time.Minute)
		if a.works.Load() != 1 || b.works.Load() != 0 || b.Leader() != "a" {
			t.Fatalf("a works %v, b works %v, b knows %q", a.works.Load(), b.works.Load(), b.Leader())
		}
		// A slow datastore: the leader stops in time, and leads again in the same process.
		cut.Store(true)
		time.Sleep(renewal + interval + 2*time.Second) // its part takes one of them to end
		if atWork.Load() != 0 {
			t.Error("a works although it cannot renew")
		}
		if c := a.cause.Load(); c == nil || !errors.Is(*c, ErrLost) {
			t.Errorf("the term ended with %v", c)
		}
		cut.Store(false)
		time.Sleep(time.Minute)
		if a.works.Load()+b.works.Load() != 1 {
			t.Fatal("nobody leads again")
		}
		// A stop hands over without waiting for the lease to end.
		first, second := a, b
		if b.works.Load() == 1 {
			first, second = b, a
		}
		first.stop()
		time.Sleep(3 * interval) // a watch of the lease would be one more request than it saves
		if second.works.Load() != 1 {
			t.Error("the other one does not lead soon after a stop")
		}
		second.stop()
		select {
		case err := <-a.failed:
			t.Error(err)
		case err := <-b.failed:
			t.Error(err)
		default:
		}
	})
}

func TestWhatEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := New("a", slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = e.Run(ctx, fake.NewClientset().CoordinationV1(), func() {}) }()
		for want, f := range map[string]func(context.Context, func()) error{
			"ended by itself": func(context.Context, func()) error { return nil },
			"broken":          func(context.Context, func()) error { return errors.New("broken") },
		} {
			if err := e.While(f)(ctx, func() {}); err == nil || err.Error() != want {
				t.Errorf("got %v, want %s", err, want)
			}
		}
		cancel()
		<-done
	})
}
