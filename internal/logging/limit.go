package logging

import (
	"hash/maphash"
	"log/slog"
	"sync"
	"time"
)

// Some libraries say the same ten times a second for as long as a server is away, which wears a flash card
// out. What is said again gets this many lines in this time; at debug there is no limit.
const (
	burst   = 10
	window  = time.Minute
	maxKept = 512
)

// limits counts how often the same is said.
type limits struct {
	mu   sync.Mutex
	seed maphash.Seed
	said map[uint64]*count
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
	if since := r.Time.Sub(c.begun); since >= window || since < 0 {
		c.begun, c.lines = r.Time, 0
	}
	if c.lines++; c.lines > burst {
		c.skipped++
		return false, 0
	}
	skipped, c.skipped = c.skipped, 0
	return true, skipped
}
