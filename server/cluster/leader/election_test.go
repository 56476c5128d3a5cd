package leader

import (
	"context"
	"errors"
	"fmt"
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
		err := m.While("part", func(ctx context.Context, _ func()) error {
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
		if c := a.cause.Load(); c == nil || !errors.Is(*c, errLost) {
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

// TestPartThatFails: whatever a part returns, in a term that lasts or in one that has ended, it is run again and
// the process goes on.
func TestPartThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var cut atomic.Bool
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			if cut.Load() {
				return true, nil, apierrors.NewTimeoutError("no quorum", 1)
			}
			return false, nil, nil
		})
		e := New("a", slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		elected, part := make(chan error, 1), make(chan error, 1)
		go func() { elected <- e.Run(ctx, client.CoordinationV1(), func() {}) }()
		var runs atomic.Int32
		parts, stop := context.WithCancel(ctx)
		go func() {
			part <- e.While("part", func(term context.Context, ready func()) error {
				switch runs.Add(1) {
				case 1: // an API that cannot be listed for a moment
					return errors.New("failed to list all nodes")
				case 2:
					return nil
				case 3: // the term ends while it starts
					<-term.Done()
					return fmt.Errorf("failed to list all nodes: %w", context.Cause(term))
				}
				ready()
				<-term.Done()
				return nil
			})(parts, func() {})
		}()
		time.Sleep(firstRetry / 2)
		if got := e.Failing()["part"]; got != "failed to list all nodes" {
			t.Errorf("failing: %q", got)
		}
		time.Sleep(4 * firstRetry)
		if n := runs.Load(); n != 3 || e.Failing()["part"] != "ended by itself" {
			t.Fatalf("%d runs, failing %v", n, e.Failing())
		}
		if e.Leader() != "a" {
			t.Errorf("leader %q", e.Leader())
		}
		cut.Store(true)
		time.Sleep(duration + interval)
		if e.Leader() != "" {
			t.Errorf("without a lease that can be read, the leader is %q", e.Leader())
		}
		cut.Store(false)
		time.Sleep(duration + 3*interval)
		if n := runs.Load(); n != 4 || len(e.Failing()) != 0 || e.Leader() != "a" {
			t.Errorf("%d runs, failing %v, leader %q", n, e.Failing(), e.Leader())
		}
		stop()
		if err := <-part; err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-elected; err != nil {
			t.Error(err)
		}
	})
}
