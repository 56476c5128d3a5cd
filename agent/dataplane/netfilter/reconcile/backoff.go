package reconcile

import "time"

// backoff spaces repairs after changes by other programs. The first repair is soon, after a tool that writes rule by
// rule is done. The pauses grow while a program goes on changing the table, so that two programs that undo each other's
// work do not keep a small machine busy.
type backoff struct {
	wait  time.Duration // before the current or latest repair
	took  time.Duration // by the latest repair
	last  time.Time     // of the latest repair
	fixed bool          // the latest repair has changed something
}

const (
	firstRepair = 20 * time.Millisecond
	// mostRepairWait bounds the pause, however long a repair takes and however often the table is changed.
	mostRepairWait = 10 * time.Second
	// cheapRepairWait bounds the pause where repairs are cheap.
	cheapRepairWait = time.Second
	// repairShare is the ratio of the pause before a repair to the duration of the previous one.
	repairShare = 50
)

// next returns the pause between a change by another program and its repair.
func (b *backoff) next(now time.Time) time.Duration {
	pace := min(repairShare*b.took, mostRepairWait)
	switch {
	case now.Sub(b.last) > mostRepairWait+2*b.wait:
		b.wait = firstRepair
	case !b.fixed:
		b.wait = max(firstRepair, pace)
	default:
		b.wait = min(max(2*b.wait, firstRepair), max(pace, cheapRepairWait))
	}
	return b.wait
}

// repaired records that the table was compared, and repaired if fixed is set, and how long that took.
func (b *backoff) repaired(now time.Time, took time.Duration, fixed bool) {
	b.last, b.took, b.fixed = now, took, fixed
}
