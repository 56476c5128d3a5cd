// Package ttl deletes keys whose lease has expired.
//
// There is one timer, set to the earliest deadline, so a store without leased keys never wakes. A key that is written
// again gets a new deadline. Deadlines are not stored: after a restart, a key lives for its whole TTL again, as in etcd
// after a change of leader. That is also safe if the clock is wrong at boot.
//
// The package imports the standard library only. The stores call it.
package ttl

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// retryPause is the pause after a failed deletion, for instance while the disk is full.
const retryPause = 5 * time.Second

// Delete removes key if it is still at the revision.
type Delete func(ctx context.Context, key string, revision int64) error

// Expirer holds the deadlines of keys and deletes the keys when they are due.
type Expirer struct {
	delete Delete
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	queue   deadlines
	current map[string]int64 // key to its newest revision; an entry of queue with another revision is obsolete
}

// New returns an Expirer. Nothing expires before Run is called.
func New(d Delete, log *slog.Logger) *Expirer {
	return &Expirer{delete: d, log: log, wake: make(chan struct{}, 1), current: map[string]int64{}}
}

// Set records that key was written at a revision with a TTL in seconds; 0 or less means no lease.
func (k *Expirer) Set(key string, revision, seconds int64) {
	k.mu.Lock()
	if seconds <= 0 {
		delete(k.current, key)
		k.mu.Unlock()
		return
	}
	k.current[key] = revision
	heap.Push(&k.queue, deadline{at: time.Now().Add(time.Duration(min(seconds, 1<<31)) * time.Second), key: key,
		revision: revision})
	first := k.queue[0].key == key && k.queue[0].revision == revision
	k.mu.Unlock()
	if first {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// Len returns the number of keys with a lease.
func (k *Expirer) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.current)
}

// Run deletes expired keys until ctx ends.
func (k *Expirer) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		wait, d, due := k.next()
		if due {
			if err := k.delete(ctx, d.key, d.revision); err != nil && ctx.Err() == nil &&
				!errors.Is(err, context.Canceled) {
				k.log.Warn("cannot delete an expired key, trying again", "key", d.key, "error", err)
				k.mu.Lock()
				d.at = time.Now().Add(retryPause)
				heap.Push(&k.queue, d)
				k.mu.Unlock()
			} else {
				k.mu.Lock()
				if k.current[d.key] == d.revision {
					delete(k.current, d.key)
				}
				k.mu.Unlock()
			}
			continue
		}
		var fire <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			fire = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-fire:
		}
		timer.Stop()
	}
}

// next drops obsolete deadlines from the head of the queue. It returns the first deadline and true if it is due, else
// the time until then; zero and false if there is none.
func (k *Expirer) next() (time.Duration, deadline, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.queue) > 0 {
		d := k.queue[0]
		if k.current[d.key] != d.revision {
			heap.Pop(&k.queue)
			continue
		}
		if wait := time.Until(d.at); wait > 0 {
			return wait, deadline{}, false
		}
		heap.Pop(&k.queue)
		return 0, d, true
	}
	return 0, deadline{}, false
}

// deadline is the time at which a key at a revision expires.
type deadline struct {
	at       time.Time
	key      string
	revision int64
}

// deadlines is a heap of deadlines, the earliest first.
type deadlines []deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)        { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	old := *d
	x := old[len(old)-1]
	old[len(old)-1] = deadline{}
	*d = old[:len(old)-1]
	return x
}
