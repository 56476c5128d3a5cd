package proxy

import "time"

// backoff says how long to wait before the table is repaired after somebody else changed it. The first
// repair is soon: a tool that writes rule by rule should be through. Somebody who does it again and again
// is met less and less often, so that two programs do not keep a small machine busy by undoing each
// other's work.
type backoff struct {
	wait  time.Duration
	limit time.Duration
	last  time.Time // of the latest repair
}

const firstRepair = 20 * time.Millisecond

// next is called when the table was touched.
func (b *backoff) next(now time.Time) time.Duration {
	if b.wait == 0 || now.Sub(b.last) > 10*time.Second+2*b.wait {
		b.wait = firstRepair
	} else {
		b.wait = min(2*b.wait, max(b.limit, firstRepair))
	}
	return b.wait
}

// repaired is called when the table is right again, with what that took: where it is cheap, it is done
// often, and in any case it takes no more than a fiftieth of the time, or happens every ten seconds.
func (b *backoff) repaired(now time.Time, took time.Duration) {
	b.last, b.limit = now, min(max(50*took, time.Second), 10*time.Second)
}
