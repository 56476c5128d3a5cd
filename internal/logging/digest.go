package logging

import (
	"log/slog"
	"sync"
	"time"
)

// Digest logs what strangers can cause as often as they like: one line every few seconds, with how many were left out.
type Digest struct {
	log     *slog.Logger
	now     func() time.Time
	message string

	mu      sync.Mutex
	last    time.Time
	skipped int
}

// digestEvery is how far apart the lines of a Digest are at least.
const digestEvery = 5 * time.Second

// NewDigest returns a Digest whose lines have a message. now is the clock.
func NewDigest(log *slog.Logger, now func() time.Time, message string) *Digest {
	return &Digest{log: log, now: now, message: message}
}

// Add logs that somebody at an address was refused and why, or counts it for the next line.
func (d *Digest) Add(from, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if since := now.Sub(d.last); since >= 0 && since < digestEvery {
		d.skipped++
		return
	}
	d.log.Warn(d.message, "from", from, "why", why, "others-since-last-line", d.skipped)
	d.last, d.skipped = now, 0
}
