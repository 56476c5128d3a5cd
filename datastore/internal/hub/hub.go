// Package hub delivers committed events to watchers.
//
// A watcher is either live, fed from memory by Publish, or behind, reading the store's history in small chunks until
// it has caught up. A watcher that does not take its events in time falls back to reading history, so a slow client
// costs a bounded amount of memory and is not cut off; it ends only if compaction overtakes it. Nothing runs while
// nothing is written, and a write wakes only the watchers of its key.
//
// The package imports kine's server interface and no storage. The stores import it; package watch serves its events.
package hub

import (
	"context"
	"errors"
	"sync"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	maxPending      = 1024    // events held in memory for one watcher
	maxPendingBytes = 8 << 20 // bytes of their values
	chunk           = 500     // events read from history at once
)

// Source is the store whose events are delivered.
type Source interface {
	// Revisions returns the newest published revision and the one up to which history is compacted.
	Revisions() (current, compact int64)
	// History returns up to limit events with revisions between from and to, in order, or server.ErrCompacted. more
	// reports that there are further ones.
	History(ctx context.Context, from, to int64, limit int) (events []*server.Event, more bool, err error)
}

// Hub is the set of watchers of one store.
type Hub struct {
	src  Source
	mu   sync.Mutex
	subs map[*Watcher]struct{}
}

// Watcher is a watch of a range of keys. One goroutine may call Take, Sent and Close; any may call Synced.
type Watcher struct {
	hub      *Hub
	key, end string
	wake     chan struct{}

	from, historyTo int64 // range of history that is to be read; only Take uses them

	mu      sync.Mutex
	pending []*server.Event
	bytes   int
	rev     int64 // newest revision published
	behind  bool  // pending was dropped: history must be read
	taken   bool  // events were taken and are not sent yet
}

// New returns a hub without watchers.
func New(src Source) *Hub { return &Hub{src: src, subs: map[*Watcher]struct{}{}} }

// Revisions returns the revisions of the source.
func (h *Hub) Revisions() (current, compact int64) { return h.src.Revisions() }

// Publish delivers events that have become visible, in revision order. The source must report rev as current by then,
// or before any caller can ask for it. Calls must not overlap.
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

// NewWatcher starts a watcher of the keys from key up to but without end, as in etcd's requests; if both are empty,
// of all keys. It gets the events from the revision on; 0 means future events only. The errors are
// server.ErrCompacted and server.ErrFutureRev. current and compact are valid in any case.
func (h *Hub) NewWatcher(key, end string, revision int64) (w *Watcher, current, compact int64, err error) {
	w = &Watcher{hub: h, key: key, end: end, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	h.subs[w] = struct{}{}
	h.mu.Unlock()
	// Not under h.mu, because stores call Publish with their own lock held. Events published in between are in pending
	// already; Take drops those before from.
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
		w.pending, w.bytes, w.behind = nil, 0, true // the first Take reads the history; no wake is needed
	}
	return w, current, compact, nil
}

// Close ends the watcher.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	delete(w.hub.subs, w)
	w.hub.mu.Unlock()
}

// Wake returns a channel that receives when there may be events to take.
func (w *Watcher) Wake() <-chan struct{} { return w.wake }

// Take returns the next events and the revision up to which all events have then been taken. If more is true, the
// caller calls Take again at once; otherwise it calls Sent once the events are sent.
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
		w.historyTo, w.behind = to, false // pending has all events above
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

// Sent records that all taken events have been sent.
func (w *Watcher) Sent() {
	w.mu.Lock()
	w.taken = false
	w.mu.Unlock()
}

// Synced returns the newest revision, and whether all events up to it have been taken and sent.
func (w *Watcher) Synced() (int64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rev, !w.taken && !w.behind && len(w.pending) == 0
}

// Watch implements the method of kine's Backend: a watch of all keys, in batches on a channel.
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
			if len(list) > 0 || first { // the first batch, even an empty one, has the revision at which the reader is
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
