// Package wallclock helps to live with clocks that are wrong at boot, as those of boards without a battery are.
//
// Released tells a clock that cannot be right; Alarm waits for a moment of the wall clock and wakes also
// when the clock is set. Whoever keeps certificates fresh uses both. It imports nothing of umiak.
package wallclock

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Released is a moment that has passed for everyone who runs this code; a clock that is behind it is wrong.
var Released = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// late is how long after Released a clock is believed: a program runs for longer on few machines, and a clock that is ahead
// is nothing that one machine alone could know.
const late = 5 * 365 * 24 * time.Hour

// Remedy is what to do about a doubt.
const Remedy = "set the clock, by NTP or from a battery-backed one; everything here goes on by itself then"

// Doubt returns why a clock that says now is wrong, or probably is; empty if it may be right.
func Doubt(now time.Time) string {
	switch {
	case now.Before(Released):
		return fmt.Sprintf("it says %s, before this release was made (%s)", now.UTC().Format(time.RFC3339), Released.Format(time.DateOnly))
	case now.After(Released.Add(late)):
		return fmt.Sprintf("it says %s, years after this release was made (%s)", now.UTC().Format(time.RFC3339), Released.Format(time.DateOnly))
	}
	return ""
}

// Alarm is a timer on the wall clock that also rings when the clock is set (timerfd_create(2)), which
// Go's timers, being on the monotonic clock, do not see.
type Alarm struct {
	f    *os.File
	rung chan struct{}
	done chan struct{}
	err  error
}

// NewAlarm returns one that does not ring before Set is called. Close ends it.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the clock: %w", err)
	}
	a := &Alarm{f: os.NewFile(uintptr(fd), "timerfd"), rung: make(chan struct{}), done: make(chan struct{})}
	go a.run()
	return a, nil
}

// Rung yields a value for each ring. It is closed when the clock cannot be watched any more; see Err.
func (a *Alarm) Rung() <-chan struct{} { return a.rung }

// Err is why Rung was closed.
func (a *Alarm) Err() error { return fmt.Errorf("watch the clock: %w", a.err) }

// Set rings after d or when the clock is set, whichever comes first.
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
	// ECANCELED tells of a clock that was set before the call; the timer is armed all the same.
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

// Close frees it. Rung is closed soon after.
func (a *Alarm) Close() {
	close(a.done)
	_ = a.f.Close() // only a timer: nothing can be lost
}
