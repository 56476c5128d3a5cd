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

	mu    sync.Mutex
	queue deadlines
	keys  map[string]*deadline // those in queue, by their keys, and the one that Run deletes
}

// New returns an Expirer. Nothing expires before Run is called.
func New(d Delete, log *slog.Logger) *Expirer {
	return &Expirer{delete: d, log: log, wake: make(chan struct{}, 1), keys: map[string]*deadline{}}
}

// Set records that key was written at a revision with a TTL in seconds; 0 or less means no lease.
func (k *Expirer) Set(key string, revision, seconds int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.keys[key]
	if seconds <= 0 {
		if d != nil {
			k.remove(d)
		}
		return
	}
	if d == nil {
		d = &deadline{key: key, index: dequeued}
		k.keys[key] = d
	}
	was := d.at
	d.revision = revision
	k.schedule(d, time.Duration(min(seconds, 1<<31))*time.Second)
	// For a later deadline Run wakes at the former one, and looks again.
	if d.index == 0 && (was.IsZero() || d.at.Before(was)) {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// schedule makes a deadline end after a time. The caller holds mu.
func (k *Expirer) schedule(d *deadline, after time.Duration) {
	d.at = time.Now().Add(after)
	if d.index == dequeued {
		heap.Push(&k.queue, d)
		return
	}
	heap.Fix(&k.queue, d.index)
}

// remove forgets a deadline. The caller holds mu.
func (k *Expirer) remove(d *deadline) {
	delete(k.keys, d.key)
	if d.index != dequeued {
		heap.Remove(&k.queue, d.index)
	}
}

// Len returns the number of keys with a lease.
func (k *Expirer) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.keys)
}

// Run deletes expired keys until ctx ends.
func (k *Expirer) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	for {
		d, revision, wait := k.next()
		if d != nil && wait <= 0 {
			err := k.delete(ctx, d.key, revision)
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				err = nil
			}
			if err != nil {
				k.log.Warn("cannot delete an expired key, trying again", "key", d.key, "error", err)
			}
			k.deleted(d, revision, err)
			continue
		}
		var fire <-chan time.Time
		if d != nil {
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

// next returns the earliest deadline, nil if there is none, with its revision and the time until then. One that is due
// is taken out of the queue, for deleted.
func (k *Expirer) next() (d *deadline, revision int64, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.queue) == 0 {
		return nil, 0, 0
	}
	d = k.queue[0]
	if wait = time.Until(d.at); wait <= 0 {
		heap.Pop(&k.queue)
	}
	return d, d.revision, wait
}

// deleted ends a deadline of next, or makes it due again where err is why its key is still there. It does nothing where
// the key was written or lost its lease meanwhile.
func (k *Expirer) deleted(d *deadline, revision int64, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.keys[d.key] != d || d.revision != revision:
	case err != nil:
		k.schedule(d, retryPause)
	default:
		k.remove(d)
	}
}

// dequeued is the index of a deadline that is not in the queue.
const dequeued = -1

// deadline is the time at which a key at a revision expires.
type deadline struct {
	at       time.Time
	key      string
	revision int64
	index    int // in the queue
}

// deadlines is a heap of deadlines, the earliest first, one for each key.
type deadlines []*deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}
func (d *deadlines) Push(x any) {
	e := x.(*deadline)
	e.index = len(*d)
	*d = append(*d, e)
}
func (d *deadlines) Pop() any {
	old := *d
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	e.index = dequeued
	return e
}
