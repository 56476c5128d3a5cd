package logging

import (
	"log/slog"
	"sync"
	"time"
)

// Digest limits the log lines that unauthenticated clients can cause: it writes one line every few seconds, with the
// number of those left out.
type Digest struct {
	log     *slog.Logger
	now     func() time.Time
	message string

	mu      sync.Mutex
	last    time.Time
	skipped int
}

// digestInterval is the minimum time between two lines of a Digest.
const digestInterval = 5 * time.Second

// NewDigest returns a Digest that logs lines with a message. now is the clock.
func NewDigest(log *slog.Logger, now func() time.Time, message string) *Digest {
	return &Digest{log: log, now: now, message: message}
}

// Add logs that a client at an address was refused and why, or counts it for the next line.
func (d *Digest) Add(from, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if since := now.Sub(d.last); since >= 0 && since < digestInterval {
		d.skipped++
		return
	}
	d.log.Warn(d.message, "from", from, "why", why, "others-since-last-line", d.skipped)
	d.last, d.skipped = now, 0
}
