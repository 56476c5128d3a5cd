package join

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/joinapi"
)

const (
	// A password that a person has chosen can be guessed, so an address gets few tries. Tokens need no such
	// limit, and have none: behind one address there may be a thousand good nodes and one bad one.
	triesPerMinute = 10
	maxSources     = 4096
)

// failures counts wrong passwords by the address they come from.
type failures struct {
	now func() time.Time

	mu    sync.Mutex
	since time.Time
	count map[netip.Addr]int
}

func newFailures(now func() time.Time) *failures {
	return &failures{now: now, count: map[netip.Addr]int{}}
}

// key is the address, or the network that one customer usually has.
func (*failures) key(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (f *failures) blocked(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.since) >= time.Minute || now.Before(f.since) {
		f.since = now
		clear(f.count)
	}
	// So many sources at once are one attacker with many addresses.
	return f.count[f.key(a)] >= triesPerMinute || len(f.count) >= maxSources
}

func (f *failures) add(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count[f.key(a)]++
}

// digest logs refusals, one line every few seconds however many there are.
type digest struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	last    time.Time
	skipped int
}

const digestEvery = 5 * time.Second

func (d *digest) add(from netip.Addr, e *joinapi.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if since := now.Sub(d.last); since >= 0 && since < digestEvery {
		d.skipped++
		return
	}
	d.log.Warn("refused to let a node in", "from", from, "why", e.Message, "others-since-last-line", d.skipped)
	d.last, d.skipped = now, 0
}
