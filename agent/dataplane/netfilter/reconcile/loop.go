package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Config describes a Loop.
type Config struct {
	// Table is named in the log.
	Table string
	// Write brings all that has changed into the kernel. With full set, it compares the whole table with what is
	// desired and repairs it; then repaired reports whether anything was wrong. It is not called concurrently. The
	// error ErrDone ends the loop.
	Write func(ctx context.Context, full bool) (repaired bool, err error)
	Log   *slog.Logger
}

// ErrDone is returned by a Write that has nothing to look after any more.
var ErrDone = errors.New("there is no table to look after")

// Loop calls Write when something has changed. Its methods other than Run may be called at any time and do not block.
type Loop struct {
	cfg                    Config
	wake, urgent, stranger chan struct{}
}

// New returns a loop that does nothing until Run.
func New(cfg Config) *Loop {
	return &Loop{cfg: cfg,
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), stranger: make(chan struct{}, 1)}
}

// Changed states that what is desired has changed.
func (l *Loop) Changed() { signal(l.wake) }

// Urgent is Changed without the wait for further changes.
func (l *Loop) Urgent() { signal(l.urgent) }

// Touched tells the loop that another program has changed the table.
func (l *Loop) Touched() { signal(l.stranger) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// How long a change waits for others that come with it. A rollout is many changes in a row; each costs a commit, in
// which the kernel waits for all packets that are under way.
const (
	minDelay = 2 * time.Millisecond
	maxDelay = 20 * time.Millisecond
)

// How long a write that failed waits for the next one.
const (
	firstRetry = 50 * time.Millisecond
	mostRetry  = 10 * time.Second
)

// Run writes until ctx ends, or Write returns ErrDone, which is no error. The first Write is full; ready is called
// after each that succeeds. It returns the context's cause, nil if that is context.Canceled.
func (l *Loop) Run(ctx context.Context, ready func()) error {
	timer := time.NewTimer(0) // fires at once, for the first write
	defer timer.Stop()
	armed := true
	arm := func(d time.Duration) {
		if !armed || d == 0 {
			timer.Reset(d)
			armed = true
		}
	}
	delay, retry := minDelay, time.Duration(0)
	full, touched := true, false
	var last time.Time
	var strangers backoff
	var repair <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case <-l.wake:
			arm(delay)
			continue
		case <-l.urgent:
			if retry == 0 {
				arm(0)
			}
			continue
		case <-l.stranger:
			if repair == nil {
				in := strangers.next(time.Now())
				l.cfg.Log.Debug("a stranger changed the table, comparing it", "table", l.cfg.Table, "in", in)
				repair = time.After(in)
			}
			continue
		case <-repair:
			repair, full, touched = nil, true, true
		case <-timer.C:
			armed = false
		}
		start := time.Now()
		repaired, err := l.cfg.Write(ctx, full)
		switch {
		case errors.Is(err, ErrDone):
			return nil
		case err != nil:
			// Repaired from whatever state it is in, soon at first, then less often.
			full, retry = true, min(max(2*retry, firstRetry), mostRetry)
			l.cfg.Log.Error("cannot write the table, trying again", "table", l.cfg.Table, "error", err, "in", retry)
			arm(retry)
			continue
		}
		took := time.Since(start)
		if touched {
			strangers.repaired(time.Now(), took, repaired)
			if repaired {
				l.cfg.Log.Warn("somebody changed the table, it is repaired", "table", l.cfg.Table)
			}
		}
		full, touched, retry = false, false, 0
		ready()
		// Under constant change, wait longer, so that commits take a small part of the time.
		if start.Sub(last) < 2*maxDelay {
			delay = min(max(2*delay, 4*took), max(maxDelay, 2*took))
		} else {
			delay = minDelay
		}
		last = time.Now()
	}
}
