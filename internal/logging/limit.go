package logging

import (
	"hash/maphash"
	"log/slog"
	"sync"
	"time"
)

// Limits of the lines of libraries, some of which repeat a message ten times a second while a server is away, which
// wears out flash: burst lines with the same text per window, and siteBurst lines from the same place in the code,
// with any text, per siteWindow. At level debug there are no limits.
const (
	burst      = 3
	window     = 10 * time.Minute
	siteBurst  = 10
	siteWindow = time.Minute
	maxTexts   = 512 // texts that are counted; then counting begins again
)

// limits counts lines by text and by place in the code.
type limits struct {
	mu    sync.Mutex
	seed  maphash.Seed
	texts map[uint64]*count
	sites map[uintptr]*count
}

type count struct {
	begun          time.Time
	lines, skipped int
}

// pass reports whether a record may be written, and how many like it were dropped since the last one that was.
func (l *limits) pass(r slog.Record) (ok bool, skipped int) {
	if l == nil {
		return true, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.texts == nil || len(l.texts) >= maxTexts {
		l.seed, l.texts = maphash.MakeSeed(), map[uint64]*count{}
	}
	var h maphash.Hash
	h.SetSeed(l.seed)
	_, _ = h.WriteString(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		_, _ = h.WriteString(a.String())
		return true
	})
	c := l.texts[h.Sum64()]
	if c == nil {
		c = &count{begun: r.Time}
		l.texts[h.Sum64()] = c
	}
	if !c.pass(r.Time, burst, window) {
		c.skipped++
		return false, 0
	}
	if l.sites == nil {
		l.sites = map[uintptr]*count{} // bounded by the number of places in the code
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

// pass counts a line and reports whether it is one of the first burst lines in its window.
func (c *count) pass(now time.Time, burst int, window time.Duration) bool {
	if since := now.Sub(c.begun); since >= window || since < 0 {
		c.begun, c.lines = now, 0
	}
	c.lines++
	return c.lines <= burst
}
