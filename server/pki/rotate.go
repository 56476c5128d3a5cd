package pki

import (
	"context"
	"time"

	"github.com/umiak-io/umiak/internal/wallclock"
)

// Run renews leaves before they end, until ctx ends. It sleeps until the first one is due, and wakes
// also when the clock is set, which is when a machine without a battery-backed clock learns the time.
func (p *PKI) Run(ctx context.Context, ready func()) error {
	alarm, err := wallclock.NewAlarm()
	if err != nil {
		return err
	}
	defer alarm.Close()
	ready()
	for {
		next := p.renewDue()
		if err := alarm.Set(next.Sub(p.cfg.Now())); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.changed:
		case _, ok := <-alarm.Rung():
			if !ok {
				return alarm.Err()
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
