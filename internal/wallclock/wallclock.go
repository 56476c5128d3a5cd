// Package wallclock handles clocks that are wrong at boot, as on boards without a battery.
//
// Doubt detects a clock that cannot be right. Alarm waits for a time of the wall clock and also fires when the clock
// is set. The code that renews certificates uses both. The package imports nothing of umiak.
package wallclock

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Released is a time before the release of this code. A clock that is behind it is wrong.
var Released = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// maxAge is the time after Released for which a clock is accepted. Few machines run a release for longer, and a machine
// alone cannot detect a clock that is less far ahead.
const maxAge = 5 * 365 * 24 * time.Hour

// Remedy is the advice for the user of a machine with a doubtful clock.
const Remedy = "set the clock, by NTP or from a battery-backed one; everything continues then without a restart"

// Doubt returns why a clock that shows now is wrong, or probably wrong; empty if it may be right.
func Doubt(now time.Time) string {
	switch {
	case now.Before(Released):
		return fmt.Sprintf("it says %s, before this release was made (%s)", now.UTC().Format(time.RFC3339),
			Released.Format(time.DateOnly))
	case now.After(Released.Add(maxAge)):
		return fmt.Sprintf("it says %s, years after this release was made (%s)", now.UTC().Format(time.RFC3339),
			Released.Format(time.DateOnly))
	}
	return ""
}

// Alarm is a timer on the wall clock that also rings when the clock is set (timerfd_create(2)). Go's timers use the
// monotonic clock, which is not set.
type Alarm struct {
	f    *os.File
	rung chan struct{}
	done chan struct{}
	err  error
}

// NewAlarm returns an Alarm that does not ring before Set is called. The caller closes it.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the clock: %w", err)
	}
	a := &Alarm{f: os.NewFile(uintptr(fd), "timerfd"), rung: make(chan struct{}), done: make(chan struct{})}
	go a.run()
	return a, nil
}

// Rung returns a channel that yields a value for each ring. It is closed when the clock cannot be watched any more; see
// Err.
func (a *Alarm) Rung() <-chan struct{} { return a.rung }

// Err returns why Rung was closed. It may be called only then.
func (a *Alarm) Err() error { return fmt.Errorf("watch the clock: %w", a.err) }

// Set makes the alarm ring after d or when the clock is set, whichever comes first.
func (a *Alarm) Set(d time.Duration) error {
	at := time.Now().Add(max(d, time.Millisecond))
	rc, err := a.f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	var set error
	err = rc.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET,
			&unix.ItimerSpec{Value: unix.NsecToTimespec(at.UnixNano())}, nil)
	})
	// ECANCELED means that the clock was set before the call. The timer is armed all the same.
	if err == nil && set != unix.ECANCELED {
		err = set
	}
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	return nil
}

// run reports each ring until the file is closed.
func (a *Alarm) run() {
	defer close(a.rung)
	buf := make([]byte, 8)
	for {
		_, err := a.f.Read(buf)
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			a.err = err
			return
		}
		select {
		case a.rung <- struct{}{}:
		case <-a.done:
			return
		}
	}
}

// Close ends the alarm. Rung is closed soon after.
func (a *Alarm) Close() {
	close(a.done)
	_ = a.f.Close() // closing a timer loses nothing
}
