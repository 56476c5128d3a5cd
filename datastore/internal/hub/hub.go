// Package hub hands committed events to watchers.
//
// A watcher is either live, fed from memory by Publish, or behind, reading the store's history in small
// chunks until it has caught up. A watcher that does not take its events in time falls back to reading
// history, so a slow client costs a bounded amount of memory and is never cut off; only compaction
// overtaking it ends it. Nothing here runs while nothing is written, and a write wakes only the watchers
// of its key.
//
// The package knows no storage; the stores import it, and watch serves it.
package hub

import (
	"context"
	"errors"
	"sync"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	maxPending      = 1024    // events held in memory for one watcher
	maxPendingBytes = 8 << 20 // and the bytes of their values
	chunk           = 500     // events read from history at once
)

// Source is the store whose events are handed out.
type Source interface {
	// Revisions returns the newest published revision and the one up to which history is compacted.
	Revisions() (current, compact int64)
	// History returns up to limit events from revision from on, in order, with revisions no higher than
	// to, or server.ErrCompacted. more says that there are others behind the last one.
	History(ctx context.Context, from, to int64, limit int) (events []*server.Event, more bool, err error)
}

// Hub is the list of watchers of one store.
type Hub struct {
	src  Source
	mu   sync.Mutex
	subs map[*Watcher]struct{}
}

// Watcher is one client's view of the events of a range of keys. Take, Sent and Close are for one
// goroutine; Synced is for any.
type Watcher struct {
	hub      *Hub
	key, end string
	wake     chan struct{}

	from, historyTo int64 // history is read from here up to there; only Take uses them

	mu      sync.Mutex
	pending []*server.Event
	bytes   int
	rev     int64 // newest revision published
	behind  bool  // pending was dropped: history has to be read
	taken   bool  // something has been taken that was not sent
}

// New returns a hub without watchers.
func New(src Source) *Hub { return &Hub{src: src, subs: map[*Watcher]struct{}{}} }

// Revisions returns the source's.
func (h *Hub) Revisions() (current, compact int64) { return h.src.Revisions() }

// Publish hands out events, in revision order, that have become visible. The source must already report
// rev as current, or do so before anybody can ask. Calls must not overlap.
func (h *Hub) Publish(events []*server.Event, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.subs {
		if w.publish(events, rev) {
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
}

func (w *Watcher) publish(events []*server.Event, rev int64) (wake bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rev = rev
	for _, e := range events {
		if !w.wants(e) {
			continue
		}
		wake = true
		if w.behind {
			break
		}
		w.pending = append(w.pending, e)
		if w.bytes += len(e.KV.Value); len(w.pending) > maxPending || w.bytes > maxPendingBytes {
			w.pending, w.bytes, w.behind = nil, 0, true
		}
	}
	return wake
}

func (w *Watcher) wants(e *server.Event) bool {
	if w.end == "\x00" {
		return e.KV.Key >= w.key
	}
	return e.InRange(w.key, w.end)
}

// NewWatcher starts a watcher of the keys from key up to but without end, as in etcd's requests; both
// empty mean all. It gets the events from the revision on, 0 meaning those to come. The errors are
// server.ErrCompacted and server.ErrFutureRev; the revisions are of that moment in any case.
func (h *Hub) NewWatcher(key, end string, revision int64) (w *Watcher, current, compact int64, err error) {
	w = &Watcher{hub: h, key: key, end: end, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	h.subs[w] = struct{}{}
	h.mu.Unlock()
	// Asked outside the lock, because stores publish with their own lock held. What was published in
	// between is in pending already; Take drops what is not wanted.
	current, compact = h.src.Revisions()
	switch {
	case revision > current+1:
		err = server.ErrFutureRev
	case revision > 0 && revision < compact:
		err = server.ErrCompacted
	case revision <= 0:
		revision = current + 1
	}
	if err != nil {
		w.Close()
		return nil, current, compact, err
	}
	w.from = revision
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rev = max(w.rev, current)
	if revision <= current {
		w.pending, w.bytes, w.behind = nil, 0, true // the first Take reads it, nobody need be woken
	}
	return w, current, compact, nil
}

// Close ends the watcher.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	delete(w.hub.subs, w)
	w.hub.mu.Unlock()
}

// Wake receives when there may be something to take.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Take returns events that have not been taken yet and the revision up to which, with them, all has been;
// more says to call it again at once. When there is no more and all is sent, the caller calls Sent.
func (w *Watcher) Take(ctx context.Context) (events []*server.Event, rev int64, more bool, err error) {
	w.mu.Lock()
	w.taken = true
	if w.from > w.historyTo {
		to := w.rev
		if !w.behind {
			events, w.pending, w.bytes = w.pending, nil, 0
			w.mu.Unlock()
			for len(events) > 0 && events[0].KV.ModRevision < w.from {
				events = events[1:]
			}
			w.from = max(w.from, to+1)
			return events, to, false, nil
		}
		w.historyTo, w.behind = to, false // memory is complete again for all above
	}
	w.mu.Unlock()

	got, more, err := w.hub.src.History(ctx, w.from, w.historyTo, chunk)
	if err != nil {
		return nil, 0, false, err
	}
	rev = w.historyTo
	if more {
		rev = got[len(got)-1].KV.ModRevision
	}
	w.from = rev + 1
	for _, e := range got {
		if w.wants(e) {
			events = append(events, e)
		}
	}
	return events, rev, true, nil
}

// Sent says that what was taken has been sent.
func (w *Watcher) Sent() {
	w.mu.Lock()
	w.taken = false
	w.mu.Unlock()
}

// Synced returns the newest revision if everything up to it has been taken and sent, else false.
func (w *Watcher) Synced() (int64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rev, !w.taken && !w.behind && len(w.pending) == 0
}

// Watch is the watch of kine's Backend: all keys, as batches on a channel.
func (h *Hub) Watch(ctx context.Context, revision int64) server.WatchResult {
	events := make(chan server.EventBatch)
	errs := make(chan error, 1)
	w, current, compact, err := h.NewWatcher("", "", revision)
	res := server.WatchResult{CurrentRevision: current, Eventc: events, Errorc: errs}
	if err != nil {
		if errors.Is(err, server.ErrCompacted) {
			res.CompactRevision = compact
		} else {
			errs <- err
		}
		close(events)
		return res
	}
	go func() {
		defer close(events)
		defer w.Close()
		for first := true; ; {
			list, rev, more, err := w.Take(ctx)
			if err != nil {
				errs <- err
				return
			}
			if len(list) > 0 || first { // the first one says from where on the reader is live
				select {
				case events <- server.EventBatch{Events: list, CurrentRev: rev}:
				case <-ctx.Done():
					return
				}
			}
			if first = false; more {
				continue
			}
			w.Sent()
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
	}()
	return res
}
