package leader

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/retry"
)

// Lease is the name of the lease, in kube-system.
const Lease = "umiak-leader"

const (
	// A leader that cannot renew stops after renewal, which is before another may begin, after duration. Each
	// renewal is a durable write on every server.
	duration = 15 * time.Second
	renewal  = 10 * time.Second
	interval = 4 * time.Second
	// handover bounds how long a server that stops tries to release the lease.
	handover = time.Second
)

// errLost is the cause with which the context of a term ends unless the server stops.
var errLost = errors.New("another server may lead now")

// Election is one server's part in it.
type Election struct {
	identity string
	log      *slog.Logger

	mu      sync.Mutex
	leading context.Context // ends with the term
	leads   bool            // there is a term, be it over already
	changed chan struct{}   // closed when a term begins or ends
	active  sync.WaitGroup  // what runs in the term
	leader  string
	heard   time.Time         // when the lease was last read or written
	failing map[string]string // parts that failed in this term and are tried again: their errors
}

// New makes the part of the server with a name.
func New(identity string, log *slog.Logger) *Election {
	return &Election{identity: identity, log: log.With("component", "election"), changed: make(chan struct{}),
		failing: map[string]string{}}
}

// Leader returns the server that leads, as far as this one knows, and "" if it has not been able to read the lease
// for as long as a lease lasts.
func (e *Election) Leader() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.heard) > duration {
		return ""
	}
	return e.leader
}

// Failing returns the parts that failed in the current term and are being tried again, with their errors.
func (e *Election) Failing() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.failing)
}

// lock is the lease; it records when a request about it last succeeded.
type lock struct {
	resourcelock.Interface
	e *Election
}

func (l lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r, raw, err := l.Interface.Get(ctx)
	if err == nil {
		l.e.hear()
	}
	return r, raw, err
}

func (l lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Create(ctx, r)
	if err == nil {
		l.e.hear()
	}
	return err
}

func (l lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	err := l.Interface.Update(ctx, r)
	if err == nil {
		l.e.hear()
	}
	return err
}

func (e *Election) hear() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = time.Now()
}

// Run takes part until ctx ends. Whatever runs by While must have stopped before.
func (e *Election) Run(ctx context.Context, client coordinationv1client.CoordinationV1Interface, ready func()) error {
	ready()
	for ctx.Err() == nil {
		lock := lock{&resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: Lease}, Client: client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity},
		}, e}
		le, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: duration, RenewDeadline: renewal, RetryPeriod: interval,
			// Not ReleaseOnCancel: after the loss of the lease it would lead until its request to release it ends.
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: e.begin, OnStoppedLeading: func() {}, OnNewLeader: e.follow,
			},
		})
		if err != nil {
			return fmt.Errorf("elect a leader: %w", err)
		}
		le.Run(ctx) // returns when the lease is lost
		led := e.end()
		e.active.Wait()
		switch {
		case !led:
		case ctx.Err() != nil:
			e.release(context.WithoutCancel(ctx), lock)
		default:
			e.log.Warn("this server could not renew its lease in time and does not lead any more", "lease", Lease)
		}
	}
	return nil
}

func (e *Election) follow(leader string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leader = leader
}

func (e *Election) begin(term context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if term.Err() != nil {
		return // over already
	}
	e.log.Info("this server leads", "lease", Lease)
	e.leading = term
	e.turn(true)
}

func (e *Election) turn(leads bool) {
	e.leads = leads
	close(e.changed)
	e.changed = make(chan struct{})
}

// end ends the term and reports whether there was one.
func (e *Election) end() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.leads {
		return false
	}
	e.turn(false)
	if e.leader == e.identity {
		e.leader = "" // the next reading of the lease says who leads
	}
	return true
}

// release lets another server lead at once instead of after the lease's end.
func (e *Election) release(ctx context.Context, lock resourcelock.Interface) {
	ctx, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	r, _, err := lock.Get(ctx)
	if err != nil || r.HolderIdentity != e.identity {
		return // nothing to give up, or nobody to tell
	}
	now := metav1.Now()
	err = lock.Update(ctx, resourcelock.LeaderElectionRecord{LeaderTransitions: r.LeaderTransitions,
		LeaseDurationSeconds: 1, RenewTime: now, AcquireTime: now})
	if err != nil {
		e.log.Info("another server leads only after this one's lease has ended", "error", err)
	}
}

// Part backs off between these while it fails in a term.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// While makes a part of one that is to run on the leader alone: it runs again in each of this server's terms. The
// context of a term ends with errLost as its cause when the term does. A part that fails never ends the process: in a
// term that is over, what it was doing could not be finished; in one that lasts, it is run again with back-off, and
// Failing names it meanwhile.
func (e *Election) While(name string, run lifecycle.Run) lifecycle.Run {
	return func(ctx context.Context, ready func()) error {
		ready()
		pauses := retry.Backoff{First: firstRetry, Limit: lastRetry}
		for {
			term, done := e.join(ctx)
			if term == nil {
				return nil
			}
			begun := time.Now()
			err := safely(term, run, func() { e.recovered(name) })
			over := term.Err() != nil
			if err == nil && !over {
				err = errors.New("ended by itself")
			}
			ends := ctx.Err() != nil || errors.As(err, new(*lifecycle.ReexecError))
			switch {
			case ends:
			case over:
				if err != nil {
					e.log.Info("a part ended with an error because this server's term is over; it runs again in the next one", "part", name, "error", err)
				}
				e.recovered(name)
				pauses.Reset()
			default:
				if time.Since(begun) > lastRetry {
					pauses.Reset()
				}
				e.failed(name, err)
				pause := pauses.Next()
				e.log.Error("a part failed and is run again", "part", name, "in", pause, "error", err)
				_ = retry.Sleep(term, pause)
			}
			done()
			if ends {
				return err
			}
		}
	}
}

// safely runs a part and makes an error of its panic: the term must end for it as well.
func safely(ctx context.Context, run lifecycle.Run, ready func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return run(ctx, ready)
}

func (e *Election) failed(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failing[name] = err.Error()
}

func (e *Election) recovered(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.failing, name)
}

// join waits for a term of this server and returns a context that ends with it or with ctx; nil when ctx ends
// before. done is to be called when what runs in it has ended.
func (e *Election) join(ctx context.Context) (term context.Context, done func()) {
	for {
		e.mu.Lock()
		leading, changed := e.leading, e.changed
		if e.leads && leading.Err() == nil {
			e.active.Add(1)
			e.mu.Unlock()
			term, cancel := context.WithCancelCause(ctx)
			stop := context.AfterFunc(leading, func() { cancel(errLost) })
			return term, func() {
				stop()
				cancel(nil)
				e.active.Done()
			}
		}
		e.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, nil
		case <-changed:
		}
	}
}
