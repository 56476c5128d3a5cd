package pki

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Run renews leaves before they end, until ctx ends. It sleeps until the first one is due, and wakes
// also when the clock is set, which is when a machine without a battery-backed clock learns the time.
func (p *PKI) Run(ctx context.Context, ready func()) error {
	clock, err := newAlarm()
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	defer clock.close()
	rung := make(chan struct{})
	go clock.run(rung)
	ready()
	for {
		next := p.renewDue()
		if err := clock.set(next.Sub(p.cfg.Now())); err != nil {
			return fmt.Errorf("watch the clock: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		case _, ok := <-rung:
			if !ok {
				return fmt.Errorf("watch the clock: %w", clock.err)
			}
		}
	}
}

// renewDue renews what is due and returns when to look next.
func (p *PKI) renewDue() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := p.cfg.Now().Add(24 * time.Hour)
	for _, l := range p.leaves {
		renewed, err := p.refresh(l, underWay)
		if err == nil && (renewed || l.err != nil) && l.Renewed != nil {
			err = l.Renewed()
		}
		l.err = err
		due := p.renewal(l.Leaf, l.ends)
		switch {
		case err != nil:
			p.cfg.Log.Error("cannot renew certificate, trying again", "certificate", l.Name, "ends", l.ends, "error", err)
			due = p.cfg.Now().Add(min(time.Minute, max(time.Second, p.lifetime(l.Leaf)/30)))
		case renewed:
			p.cfg.Log.Info("renewed certificate", "certificate", l.Name, "ends", l.ends)
		}
		if due.Before(next) {
			next = due
		}
	}
	return next
}

// alarm is a timer on the wall clock that also rings when the clock is set (timerfd_create(2)), which
// Go's timers, being on the monotonic clock, do not see.
type alarm struct {
	f    *os.File
	done chan struct{}
	err  error
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &alarm{f: os.NewFile(uintptr(fd), "timerfd"), done: make(chan struct{})}, nil
}

// set rings after d or when the clock is set, whichever comes first.
func (a *alarm) set(d time.Duration) error {
	at := time.Now().Add(max(d, time.Millisecond))
	rc, err := a.f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = rc.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET,
			&unix.ItimerSpec{Value: unix.NsecToTimespec(at.UnixNano())}, nil)
	})
	if err != nil {
		return err
	}
	// ECANCELED tells of a clock that was set before the call; the timer is armed all the same.
	if set == unix.ECANCELED {
		return nil
	}
	return set
}

// run reports each ring until the file is closed.
func (a *alarm) run(rung chan<- struct{}) {
	defer close(rung)
	buf := make([]byte, 8)
	for {
		_, err := a.f.Read(buf)
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			a.err = err
			return
		}
		select {
		case rung <- struct{}{}:
		case <-a.done:
			return
		}
	}
}

func (a *alarm) close() {
	close(a.done)
	_ = a.f.Close() // only a timer: nothing can be lost
}
