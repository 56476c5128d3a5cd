package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// Policy says how a part is run again when it has failed.
type Policy struct {
	// First is the pause after the first failure; 0 means a second. It doubles with each further one.
	First time.Duration
	// Most is the longest pause; 0 means a minute.
	Most time.Duration
	// Steady is how long the part must have been ready for its next failure to count as the first again; 0 means
	// two minutes.
	Steady time.Duration
	// Held delays the part's first run: it is the reason why the process before this one ended. Nil means no delay.
	Held *Held
	// Report is told of failures and recoveries; nil means nobody is.
	Report Reporter
}

// Held is what keeps a part from running at once.
type Held struct {
	Reason  error
	Attempt int
	For     time.Duration
}

// Reporter learns how a part with a Policy fares. Its methods must not block.
type Reporter interface {
	// Failing is called when the part has failed, and not with the words of the failure before.
	Failing(part string, err error)
	// Recovered is called when the part is ready again.
	Recovered(part string)
}

// Restart returns the part with a policy: a failure of its Run does not stop the group but is logged, reported and
// shown by Status, and Run is called again after a pause. Parts that wait for it go on waiting; those that it has
// let start run on while it is started again. Each run has a context of its own, which ends with it.
//
// Errors that wrap Permanent or Anew stop the group in any case.
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

// Pause is how long to wait after a number of failures in a row.
func (p Policy) Pause(failures int) time.Duration {
	d := p.First
	for ; failures > 1 && d < p.Most; failures-- {
		d *= 2
	}
	return min(d, p.Most)
}

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that trying again cannot cure, as a setting that only a person can change.
func Permanent(err error) error { return permanent{err} }

// Anew is the error of a part that can run only once in a process and has ended: the process has to execute itself
// anew to have it back.
type Anew struct {
	Part string // as `umiak status` names it
	Err  error
}

func (a *Anew) Error() string { return a.Err.Error() }
func (a *Anew) Unwrap() error { return a.Err }

type waking struct {
	error
	wake <-chan struct{}
}

func (w waking) Unwrap() error { return w.error }

// WakeOn returns an error after which the part is run again as soon as wake is closed or yields something, and not
// only after the pause: for what can be watched.
func WakeOn(err error, wake <-chan struct{}) error { return waking{err, wake} }

// ends says whether a failure stops the group although the part has a policy.
func ends(err error) bool {
	var p permanent
	var a *Anew
	return errors.As(err, &p) || errors.As(err, &a)
}

// settle is how long a part must be ready to have recovered: some are ready at once, and fail then.
const settle = 2 * time.Second

// again runs a part with a policy until it is told to stop or fails for good.
func (g *Group) again(stop, run context.Context, p *part, ready func()) error {
	pol := *p.Restart
	failures, said := 0, ""
	if h := pol.Held; h != nil {
		failures, said = h.Attempt, h.Reason.Error()
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
		err := g.safely(attempt, p, func() {
			mu.Lock()
			defer mu.Unlock()
			if !since.IsZero() || attempt.Err() != nil {
				return
			}
			since = time.Now()
			ready()
			if said != "" {
				settled = time.AfterFunc(settle, func() {
					g.log.Info("part works again", "part", p.Name, "attempt", attempts)
					if pol.Report != nil {
						pol.Report.Recovered(p.Name)
					}
				})
			}
		})
		cancel()
		if run.Err() != nil || stop.Err() != nil || ends(err) || err == nil && p.Oneshot {
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
			if time.Since(since) >= settle {
				said = ""
			}
			if time.Since(since) >= pol.Steady {
				failures = 0
			}
		}
		mu.Unlock()
		failures++
		pause := pol.Pause(failures)
		if text := err.Error(); text != said {
			said = text
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

// rest waits before the next run of a part. It returns false when there shall be none.
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

// safely runs a part once and makes an error of a panic in its goroutine.
func (g *Group) safely(ctx context.Context, p *part, ready func()) (err error) {
	defer func() {
		if r := recover(); r != nil {
			g.log.Error("part panicked", "part", p.Name, "error", fmt.Sprint(r), "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return p.Run(ctx, ready)
}

func (p *part) retry(err error, failures int, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.State, p.status.Since = Retrying, time.Now()
	p.status.Error, p.status.Attempt, p.status.Next = err.Error(), failures, next
}
