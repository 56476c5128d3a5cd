package logging

import (
	"hash/maphash"
	"log/slog"
	"sync"
	"time"
)

// Some libraries say the same ten times a second for as long as a server is away, which wears a flash card
// out. What is said again gets this many lines in this time, and so does what is said at one place of the code, be it
// about one thing after the other. At debug there is no limit.
const (
	burst      = 3
	window     = 10 * time.Minute
	siteBurst  = 10
	siteWindow = time.Minute
	maxKept    = 512
)

// limits counts how often the same is said, and how often at the same place.
type limits struct {
	mu    sync.Mutex
	seed  maphash.Seed
	said  map[uint64]*count
	sites map[uintptr]*count
}

type count struct {
	begun          time.Time
	lines, skipped int
}

// pass says whether a record may be shown, and how many like it were not since the last one that was.
func (l *limits) pass(r slog.Record) (ok bool, skipped int) {
	if l == nil {
		return true, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said == nil || len(l.said) >= maxKept {
		l.seed, l.said = maphash.MakeSeed(), map[uint64]*count{}
	}
	var h maphash.Hash
	h.SetSeed(l.seed)
	_, _ = h.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		_, _ = h.WriteString(a.String())
		return true
	})
	c := l.said[h.Sum64()]
	if c == nil {
		c = &count{begun: r.Time}
		l.said[h.Sum64()] = c
	}
	if !c.pass(r.Time, burst, window) {
		c.skipped++
		return false, 0
	}
	if l.sites == nil {
		l.sites = map[uintptr]*count{} // as many as there are places in the code
	}
	site := l.sites[r.PC]
	if site == nil {
		site = &count{begun: r.Time}
		l.sites[r.PC] = site
	}
	if r.PC != 0 && !site.pass(r.Time, siteBurst, siteWindow) {
		site.skipped++
		return false, 0
	}
	skipped = c.skipped + site.skipped
	c.skipped, site.skipped = 0, 0
	return true, skipped
}

// pass counts a line and reports whether it is one of the first in its window.
func (c *count) pass(now time.Time, burst int, window time.Duration) bool {
	if since := now.Sub(c.begun); since >= window || since < 0 {
		c.begun, c.lines = now, 0
	}
	c.lines++
	return c.lines <= burst
}
