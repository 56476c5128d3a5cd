package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Run is the function of a part.
type Run = func(ctx context.Context, ready func()) error

// Part is one long-running piece of a process.
type Part struct {
	// Name identifies the part in logs, in After lists and in `umiak status`.
	Name string
	// After names the parts that must be ready before Run is called. A part is stopped only when
	// every part that names it here has returned.
	After []string
	// Run does the work and returns when ctx ends. It calls ready once, as soon as other parts may rely on it; a part
	// that no other waits for may call it at once. A return before ctx has ended is a failure of the whole group,
	// also with a nil error.
	Run Run
	// StopTimeout is the time that Run may take to return after ctx has ended; 0 means 30 seconds. After it, the group
	// logs a warning, stops the other parts and ends without this one. A part that waits for one that has failed gets 5
	// seconds at most, since it may be waiting for that one.
	StopTimeout time.Duration
	// Restart is the policy by which Run is called again after a failure, see the function Restart; nil means that a
	// failure stops the group.
	Restart *Policy
}

// State is the state of a part.
type State string

// The states of a part, in their order.
const (
	Waiting  State = "waiting"
	Starting State = "starting"
	Ready    State = "ready"
	Retrying State = "retrying" // after a failure, until it is ready again
	Stopping State = "stopping"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Status describes a part at one moment.
type Status struct {
	Name       string    `json:"name"`
	State      State     `json:"state"`
	WaitingFor []string  `json:"waitingFor,omitempty"`
	Since      time.Time `json:"since"`
	Error      string    `json:"error,omitempty"`
	// Attempt is the number of failures in a row of a part that is retrying, Next the time of its next run.
	Attempt int       `json:"attempt,omitempty"`
	Next    time.Time `json:"next,omitzero"`
}

// String returns the status in a few words, for people.
func (s Status) String() string {
	switch {
	case s.State == Waiting && len(s.WaitingFor) > 0:
		return fmt.Sprintf("%s: waiting for %s", s.Name, strings.Join(s.WaitingFor, ", "))
	case s.State == Retrying && time.Until(s.Next) > 0:
		return fmt.Sprintf("%s: retrying in %s: %s", s.Name, time.Until(s.Next).Round(time.Second), s.Error)
	case s.Error != "":
		return fmt.Sprintf("%s: %s: %s", s.Name, s.State, s.Error)
	}
	return fmt.Sprintf("%s: %s", s.Name, s.State)
}

// Group is a set of parts that start and stop together.
type Group struct {
	log   *slog.Logger
	parts []*part
}

type part struct {
	Part
	after  []*part
	ready  chan struct{}
	done   chan struct{}
	gone   chan struct{} // closed when the part is done, or after StopTimeout
	cancel context.CancelFunc

	err error // set before done is closed

	mu     sync.Mutex
	status Status
}

// New checks the list of parts and returns the group. Parts are in start order: a part may wait only for parts before
// it, which also rules out cycles.
func New(log *slog.Logger, parts ...Part) (*Group, error) {
	g := &Group{log: log}
	byName := map[string]*part{}
	for _, p := range parts {
		q := &part{Part: p, ready: make(chan struct{}), done: make(chan struct{}), gone: make(chan struct{}),
			status: Status{Name: p.Name, State: Waiting, Since: time.Now()}}
		if _, dup := byName[p.Name]; dup || p.Name == "" {
			return nil, fmt.Errorf("part %q: the name is empty or taken", p.Name)
		}
		for _, a := range p.After {
			dep, ok := byName[a]
			if !ok {
				return nil, fmt.Errorf("part %q waits for %q, which is not before it in the list", p.Name, a)
			}
			q.after = append(q.after, dep)
		}
		byName[p.Name] = q
		g.parts = append(g.parts, q)
	}
	return g, nil
}

// Run starts the parts and blocks until all have stopped. If ctx ended, it returns the errors of stopping, nil if there
// are none. Otherwise it returns them joined with the error of the part that failed first.
func (g *Group) Run(ctx context.Context) error {
	// stop cancels the start of parts that have not begun. Each running part has a context of its own, so that it can
	// be stopped after those that depend on it.
	stop, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, p := range g.parts {
		run, cancelRun := context.WithCancel(context.WithoutCancel(ctx))
		p.cancel = cancelRun
		go func() {
			defer close(p.done)
			defer cancelRun()
			if err := g.runOne(stop, run, p); err != nil {
				p.err = fmt.Errorf("%s: %w", p.Name, err)
				cancel(p.err)
			}
		}()
	}
	go g.stopInReverse(stop)
	var errs []error
	for _, p := range g.parts {
		<-p.gone
		select {
		case <-p.done:
			errs = append(errs, p.err)
		default:
			errs = append(errs, fmt.Errorf("%s: does not stop", p.Name))
		}
	}
	if ctx.Err() != nil && context.Cause(stop) == context.Cause(ctx) {
		return errors.Join(errs...)
	}
	// The error that caused the end is the last one, since a log is read from its end.
	first := context.Cause(stop)
	var out []error
	for _, e := range errs {
		if e != nil && e != first {
			out = append(out, e)
		}
	}
	return errors.Join(append(out, first)...)
}

// runOne runs a part once its dependencies are ready. stop ends when the group stops, run when the part must stop.
func (g *Group) runOne(stop, run context.Context, p *part) error {
	for _, a := range p.after {
		select {
		case <-a.ready:
		case <-stop.Done():
			p.set(Stopped, nil)
			return nil
		}
	}
	if stop.Err() != nil {
		p.set(Stopped, nil)
		return nil
	}
	p.set(Starting, nil)
	begun := time.Now()
	var once sync.Once
	ready := func() {
		p.set(Ready, nil)
		once.Do(func() {
			g.log.Debug("ready", "part", p.Name, "after", time.Since(begun).Round(time.Millisecond))
			close(p.ready)
		})
	}
	var err error
	if p.Restart != nil {
		err = g.runRestarting(stop, run, p, ready)
	} else {
		err = g.runOnce(run, p, sync.OnceFunc(ready))
	}
	if stop.Err() == nil && run.Err() == nil && err == nil {
		err = errEnded
	}
	if err != nil && run.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // many parts return this when they are stopped
	}
	if err != nil {
		p.set(Failed, err)
		return err
	}
	p.set(Stopped, nil)
	return nil
}

// stopInReverse ends the context of each part once all parts that wait for it are gone.
func (g *Group) stopInReverse(stop context.Context) {
	<-stop.Done()
	dependents := map[*part][]*part{}
	for _, p := range g.parts {
		for _, a := range p.after {
			dependents[a] = append(dependents[a], p)
		}
	}
	for _, p := range slices.Backward(g.parts) {
		go func() {
			defer close(p.gone)
			for _, d := range dependents[p] {
				<-d.gone
			}
			p.mu.Lock()
			if p.status.State == Ready || p.status.State == Starting || p.status.State == Retrying {
				p.status.State, p.status.Since = Stopping, time.Now()
			}
			p.mu.Unlock()
			p.cancel()
			limit := p.stopTimeout()
			select {
			case <-p.done:
			case <-time.After(limit):
				g.log.Warn("part does not stop, going on without it", "part", p.Name, "waited", limit)
			}
		}()
	}
}

const (
	defaultStopTimeout = 30 * time.Second
	orphanStopTimeout  = 5 * time.Second
)

// stopTimeout returns the time that the part may take to stop.
func (p *part) stopTimeout() time.Duration {
	limit := p.StopTimeout
	if limit == 0 {
		limit = defaultStopTimeout
	}
	for _, a := range p.after {
		a.mu.Lock()
		failed := a.status.State == Failed || a.status.State == Retrying
		a.mu.Unlock()
		if failed {
			limit = min(limit, orphanStopTimeout)
		}
	}
	return limit
}

// Status returns the status of every part, in start order.
func (g *Group) Status() []Status {
	out := make([]Status, 0, len(g.parts))
	for _, p := range g.parts {
		p.mu.Lock()
		s := p.status
		p.mu.Unlock()
		if s.State == Waiting {
			for _, a := range p.after {
				select {
				case <-a.ready:
				default:
					s.WaitingFor = append(s.WaitingFor, a.Name)
				}
			}
		}
		out = append(out, s)
	}
	return out
}

// WaitReady blocks until every part is ready. If ctx ends first, the error names the parts that are not.
func (g *Group) WaitReady(ctx context.Context) error {
	for _, p := range g.parts {
		select {
		case <-p.ready:
		case <-p.done:
			return fmt.Errorf("%s has stopped", p.Name)
		case <-ctx.Done():
			var open []string
			for _, s := range g.Status() {
				if s.State != Ready {
					open = append(open, s.String())
				}
			}
			return fmt.Errorf("%w (%s)", context.Cause(ctx), strings.Join(open, "; "))
		}
	}
	return nil
}

// AllReady reports whether every part is ready now.
func (g *Group) AllReady() bool {
	for _, p := range g.parts {
		p.mu.Lock()
		s := p.status.State
		p.mu.Unlock()
		if s != Ready {
			return false
		}
	}
	return true
}

func (p *part) set(s State, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.State, p.status.Since = s, time.Now()
	p.status.Error, p.status.Attempt, p.status.Next = "", 0, time.Time{}
	if err != nil {
		p.status.Error = err.Error()
	}
}
