package joinapi

import (
	"net/netip"
	"sync"
	"time"
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

// try counts one try of an address, before it is known whether it is a wrong one, and reports whether it may be made:
// many at once are no more tries than one after the other.
func (f *failures) try(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.now(); now.Sub(f.since) >= time.Minute || now.Before(f.since) {
		f.since = now
		clear(f.count)
	}
	// So many sources at once are one attacker with many addresses.
	if f.count[f.key(a)] >= triesPerMinute || len(f.count) >= maxSources {
		return false
	}
	f.count[f.key(a)]++
	return true
}

// right takes back what try has counted.
func (f *failures) right(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.key(a); f.count[k] > 1 {
		f.count[k]--
	} else {
		delete(f.count, k)
	}
}
