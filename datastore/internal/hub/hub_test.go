package hub_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/umiak-io/umiak/datastore/internal/hub"
)

// source is a Source with an event at every revision.
type source struct{ current atomic.Int64 }

func (s *source) Revisions() (int64, int64) { return s.current.Load(), 0 }

func (s *source) History(_ context.Context, from, to int64, limit int) (out []*server.Event, more bool, err error) {
	for ; from <= to; from++ {
		if len(out) == limit {
			return out, true, nil
		}
		out = append(out, at(from))
	}
	return out, false, nil
}

func at(rev int64) *server.Event {
	return &server.Event{KV: &server.KeyValue{Key: "/k", ModRevision: rev}}
}

// TestWatchersBeginWhileEventsCome starts watchers of old revisions while new ones are published: each watcher must see
// every revision once, and none may block.
func TestWatchersBeginWhileEventsCome(t *testing.T) {
	s := &source{}
	s.current.Store(1)
	h := hub.New(s)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	const end = 200_000
	go func() {
		for rev := int64(2); rev <= end; rev++ {
			s.current.Store(rev)
			h.Publish([]*server.Event{at(rev)}, rev)
		}
	}()
	var wg sync.WaitGroup
	for range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for s.current.Load() < end && ctx.Err() == nil {
				from := max(s.current.Load()-10, 1)
				w, _, _, err := h.NewWatcher("/k", "", from)
				if err != nil {
					t.Error(err)
					return
				}
				for next := from; next < from+50 && next <= end; {
					events, rev, more, err := w.Take(ctx)
					if err != nil {
						t.Error(err)
						return
					}
					for _, e := range events {
						if e.KV.ModRevision != next || e.KV.ModRevision > rev {
							t.Errorf("revision %d, want %d, up to %d", e.KV.ModRevision, next, rev)
							return
						}
						next++
					}
					if more || next >= from+50 || next > end {
						continue
					}
					w.Sent()
					select {
					case <-w.Wake():
					case <-ctx.Done():
						t.Error("nobody wakes the watcher")
						return
					}
				}
				w.Close()
			}
		}()
	}
	wg.Wait()
}
