package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Policy describes how a part is run again after a failure.
type Policy struct {
	// First is the pause after the first failure; 0 means one second. It doubles with each further failure.
	First time.Duration
	// Most is the longest pause; 0 means one minute.
	Most time.Duration
	// Steady is the time for which the part must have been ready for its next failure to count as the first one; 0
	// means two minutes.
	Steady time.Duration
	// Held delays the first run of the part, which has ended the previous run of the process; nil means no delay.
	Held *Held
	// Report is called after failures and recoveries; it may be nil.
	Report Reporter
}

// Held describes the delay of the first run of a part.
type Held struct {
	Reason  error         // why the previous run of the process ended
	Attempt int           // failures in a row so far
	For     time.Duration // delay
}

// Reporter receives the failures and recoveries of a part with a Policy. Its methods must not block.
type Reporter interface {
	// Failing is called when the part has failed with another error text than the last time.
	Failing(part string, err error)
	// Recovered is called when the part is ready again.
	Recovered(part string)
}

// Restart returns the part with a policy: a failure of its Run does not stop the group. It is logged, reported and
// shown by Status, and Run is called again after a pause. Parts that wait for this one go on waiting; parts that have
// started keep running. Each call of Run has a context of its own, which ends with the call.
//
// Errors that wrap Permanent or ReexecError stop the group in any case.
func Restart(p Part, policy Policy) Part {
	if policy.First <= 0 {
		policy.First = time.Second
	}
	if policy.Most <= 0 {
		policy.Most = time.Minute
	}
	if policy.Steady <= 0 {
		policy.Steady = 2 * time.Minute
	}
	p.Restart = &policy
	return p
}

// Pause returns the pause after a number of failures in a row.
func (p Policy) Pause(failures int) time.Duration {
	d := p.First
	for ; failures > 1 && d < p.Most; failures-- {
		d *= 2
	}
	return min(d, p.Most)
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that a retry cannot repair, for instance a wrong setting.
func Permanent(err error) error { return permanent{err} }

// ReexecError is the error of a part that can run only once per process and has ended: the process must execute itself
// again (see package reexec) to start the part again.
type ReexecError struct {
	Part string // as `umiak status` names it
	Err  error
}

func (a *ReexecError) Error() string { return a.Err.Error() }
func (a *ReexecError) Unwrap() error { return a.Err }

type waking struct {
	error
	wake <-chan struct{}
}

func (w waking) Unwrap() error { return w.error }

// WakeOn returns an error after which the part is run again as soon as wake is closed or yields a value, if that is
// before the end of the pause.
func WakeOn(err error, wake <-chan struct{}) error { return waking{err, wake} }

// isFinal reports whether a failure stops the group although the part has a policy.
func isFinal(err error) bool {
	var p permanent
	var a *ReexecError
	return errors.As(err, &p) || errors.As(err, &a)
}

// settleTime is the time for which a part must be ready to count as recovered: some parts call ready at once and fail
// then.
const settleTime = 2 * time.Second

// runRestarting runs a part with a policy until it is stopped or fails with a final error.
func (g *Group) runRestarting(stop, run context.Context, p *part, ready func()) error {
	pol := *p.Restart
	failures, reported := 0, "" // the text of the failure that was reported last; empty after a recovery
	if h := pol.Held; h != nil {
		failures, reported = h.Attempt, h.Reason.Error()
		if !g.rest(stop, p, h.Reason, failures, h.For) {
			return nil
		}
	}
	for {
		var since time.Time
		var settled *time.Timer
		var mu sync.Mutex
		attempts := failures + 1
		attempt, cancel := context.WithCancel(run)
		err := g.runOnce(attempt, p, func() {
			mu.Lock()
			defer mu.Unlock()
			if !since.IsZero() || attempt.Err() != nil {
				return
			}
			since = time.Now()
			ready()
			if reported != "" {
				settled = time.AfterFunc(settleTime, func() {
					g.log.Info("part works again", "part", p.Name, "attempt", attempts)
					if pol.Report != nil {
						pol.Report.Recovered(p.Name)
					}
				})
			}
		})
		cancel()
		if run.Err() != nil || stop.Err() != nil || isFinal(err) {
			return err
		}
		if err == nil {
			err = errEnded
		}
		mu.Lock()
		if settled != nil {
			settled.Stop()
		}
		if !since.IsZero() {
			if time.Since(since) >= settleTime {
				reported = ""
			}
			if time.Since(since) >= pol.Steady {
				failures = 0
			}
		}
		mu.Unlock()
		failures++
		pause := pol.Pause(failures)
		if text := err.Error(); text != reported {
			reported = text
			g.log.Warn("part failed, it is started again", "part", p.Name, "error", err, "in", pause)
			if pol.Report != nil {
				pol.Report.Failing(p.Name, err)
			}
		}
		if !g.rest(stop, p, err, failures, pause) {
			return nil
		}
	}
}

// rest waits until the next run of a part. It returns false if the group stops first.
func (g *Group) rest(stop context.Context, p *part, err error, failures int, pause time.Duration) bool {
	p.retry(err, failures, time.Now().Add(pause))
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var wake <-chan struct{}
	var w waking
	if errors.As(err, &w) {
		wake = w.wake
	}
	select {
	case <-timer.C:
	case <-wake:
	case <-stop.Done():
		return false
	}
	return true
}

var errEnded = errors.New("ended by itself")

// runOnce calls Run of a part once and turns a panic in its goroutine into an error.
func (g *Group) runOnce(ctx context.Context, p *part, ready func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			g.log.Error("part panicked", "part", p.Name, "error", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return p.Run(ctx, ready)
}

// retry sets the status of a part that has failed and is run again at next.
func (p *part) retry(err error, failures int, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.State, p.status.Since = Retrying, time.Now()
	p.status.Error, p.status.Attempt, p.status.Next = err.Error(), failures, next
}
