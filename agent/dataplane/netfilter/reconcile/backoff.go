package reconcile

import "time"

// backoff spaces repairs after changes by strangers. The first is soon: a tool that writes rule by rule should be
// through. A stranger that changes the table again and again is answered less and less often, so that two programs do
// not keep a small machine busy by undoing each other's work.
type backoff struct {
	wait  time.Duration // before the current or latest repair
	took  time.Duration // by the latest repair
	last  time.Time     // of the latest repair
	fixed bool          // the latest repair has changed something
}

const (
	firstRepair = 20 * time.Millisecond
	// A repair happens at least this often, however long it takes and however often a stranger interferes.
	mostRepairWait = 10 * time.Second
	// Where repairs are cheap, the wait does not grow beyond this.
	cheapRepairWait = time.Second
	// repairShare is how many times longer than a repair the wait before the next one is.
	repairShare = 50
)

// next returns how long to wait with the repair after a stranger's change.
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
