// Package hub hands committed events to watchers.
//
// A watcher is either live, fed from memory by Publish, or behind, reading the store's history in small
// chunks until it has caught up. A watcher that does not take its events in time falls back to reading
// history, so a slow client costs a bounded amount of memory and is never cut off; only compaction
// overtaking it ends it. Nothing here runs while nothing is written.
//
// The package knows no storage; the stores import it, nobody else does.
package hub

import (
	"context"
	"errors"
	"sync"

	"github.com/k3s-io/kine/pkg/server"
)

const (
	maxPending = 1024 // events held in memory for one watcher
	chunk      = 500  // events read from history at once
)

// Source is the store whose events are handed out.
type Source interface {
	// Revisions returns the newest published revision and the one up to which history is compacted.
	Revisions() (current, compact int64)
	// History returns up to limit events from revision from on, in order, with revisions no higher than
	// to, or server.ErrCompacted. Fewer events than limit means that there are no more.
	History(ctx context.Context, from, to int64, limit int) ([]*server.Event, error)
}

// Hub is the list of watchers of one store.
type Hub struct {
	src  Source
	mu   sync.Mutex
	subs map[*sub]struct{}
}

type sub struct {
	wake    chan struct{}
	mu      sync.Mutex
	pending []*server.Event
	rev     int64 // newest revision published to this watcher
	behind  bool  // pending was dropped: history has to be read
}

// New returns a hub without watchers.
func New(src Source) *Hub { return &Hub{src: src, subs: map[*sub]struct{}{}} }

// Publish hands out events, in revision order, that have become visible. The source must already report
// rev as current. Calls must not overlap.
func (h *Hub) Publish(events []*server.Event, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.mu.Lock()
		s.rev = rev
		if !s.behind {
			if len(s.pending)+len(events) > maxPending {
				s.pending, s.behind = nil, true
			} else {
				s.pending = append(s.pending, events...)
			}
		}
		s.mu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Watch starts a watcher at the revision, which is the first whose events it gets; 0 means the next one
// to be written. The first batch is sent at once, so that a reader knows from which revision on it is live.
func (h *Hub) Watch(ctx context.Context, revision int64) server.WatchResult {
	s := &sub{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	h.subs[s] = struct{}{}
	h.mu.Unlock()
	// Asked outside the lock, because stores publish with their own lock held. What was published in
	// between is in pending already; pump drops what the watcher does not want.
	current, compact := h.src.Revisions()

	events := make(chan server.EventBatch)
	errs := make(chan error, 1)
	res := server.WatchResult{CurrentRevision: current, Eventc: events, Errorc: errs}
	end := func() {
		h.mu.Lock()
		delete(h.subs, s)
		h.mu.Unlock()
		close(events)
	}
	switch {
	case revision > current+1:
		errs <- server.ErrFutureRev
		end()
		return res
	case revision != 0 && revision < compact:
		res.CompactRevision = compact
		end()
		return res
	case revision == 0:
		revision = current + 1
	}
	s.mu.Lock()
	s.rev = max(s.rev, current)
	if revision <= current {
		s.pending, s.behind = nil, true
	}
	s.mu.Unlock()
	go func() {
		defer end()
		if err := h.pump(ctx, s, revision, current, events); err != nil && !errors.Is(err, context.Canceled) {
			errs <- err
		}
	}()
	return res
}

// pump sends everything from revision from on, until ctx ends or the history that it needs is gone.
func (h *Hub) pump(ctx context.Context, s *sub, from, current int64, out chan<- server.EventBatch) error {
	send := func(b server.EventBatch) error {
		select {
		case out <- b:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	first := true
	for {
		s.mu.Lock()
		to, behind := s.rev, s.behind
		events := s.pending
		s.pending = nil
		if behind {
			s.behind = false // from now on memory is complete again for all above to
		}
		s.mu.Unlock()
		for behind && from <= to {
			got, err := h.src.History(ctx, from, to, chunk)
			if err != nil {
				return err
			}
			upTo := to
			if len(got) == chunk {
				upTo = got[len(got)-1].KV.ModRevision
			}
			if err := send(server.EventBatch{Events: got, CurrentRev: upTo}); err != nil {
				return err
			}
			from, first = upTo+1, false
		}
		for len(events) > 0 && events[0].KV.ModRevision < from {
			events = events[1:]
		}
		if len(events) > 0 || first {
			if err := send(server.EventBatch{Events: events, CurrentRev: max(to, current)}); err != nil {
				return err
			}
			from, first = max(to, current)+1, false
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
