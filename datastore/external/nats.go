package external

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/k3s-io/kine/pkg/broadcaster"
	"github.com/k3s-io/kine/pkg/drivers"
	"github.com/k3s-io/kine/pkg/drivers/nats"
	"github.com/k3s-io/kine/pkg/server"
)

// wholeWatches is kine's NATS driver (v0.17.5) with watches that miss no events. The driver takes its revision and its
// live events from two consumers. If the second one is ahead, a new watch gets the history up to the older revision and
// the live events since its start, and loses the events in between. wholeWatches reads the history only when the
// driver's revision has reached all delivered events.
type wholeWatches struct {
	server.Backend

	ctx       context.Context
	live      broadcaster.Broadcaster
	delivered atomic.Int64 // newest revision that was sent to the watches
}

// newNATS is a drivers.Constructor.
func newNATS(ctx context.Context, wg *sync.WaitGroup, cfg *drivers.Config) (bool, server.Backend, error) {
	elect, b, err := nats.New(ctx, wg, cfg)
	if err != nil {
		return false, nil, err
	}
	return elect, &wholeWatches{Backend: b, ctx: ctx}, nil
}

var _ drivers.Constructor = newNATS

// listen starts the one watch of the driver, from which all other watches are fed. When it ends, they all end, and
// their clients start new ones.
func (w *wholeWatches) listen() (chan server.EventBatch, error) {
	ctx, cancel := context.WithCancel(w.ctx)
	from := w.Backend.Watch(ctx, 0)
	out := make(chan server.EventBatch)
	go func() {
		defer cancel()
		defer close(out)
		for batch := range from.Eventc {
			// After the driver has lost its connection, it sends all events again.
			batch = batch.After(w.delivered.Load())
			if len(batch.Events) == 0 {
				continue
			}
			// A client that sees an event must be able to read the key at its revision.
			if err := w.reach(ctx, batch.CurrentRev); err != nil {
				return
			}
			w.delivered.Store(max(w.delivered.Load(), batch.CurrentRev))
			select {
			case out <- batch:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Watch implements server.Backend.
func (w *wholeWatches) Watch(ctx context.Context, revision int64) server.WatchResult {
	ctx, cancel := context.WithCancel(ctx)
	live := w.live.Watch(ctx, w.listen)
	if err := w.reach(ctx, w.delivered.Load()); err != nil {
		cancel()
		return failed(err)
	}
	old, end := context.WithCancel(ctx)
	past := w.Backend.Watch(old, revision)
	first, ok := <-past.Eventc
	end()
	if !ok || past.CompactRevision != 0 || len(past.Errorc) > 0 {
		cancel()
		return past
	}
	out := make(chan server.EventBatch, 100)
	out <- first
	go func() {
		defer cancel()
		defer close(out)
		for batch := range live {
			select {
			case out <- batch.After(past.CurrentRevision):
			case <-ctx.Done():
				return
			}
		}
	}()
	return server.WatchResult{CurrentRevision: past.CurrentRevision, Eventc: out, Errorc: past.Errorc}
}

// reach waits until the driver's revision is at least the given one. That takes milliseconds, and there is no event to
// wait for.
func (w *wholeWatches) reach(ctx context.Context, revision int64) error {
	for {
		rev, err := w.CurrentRevision(ctx)
		if err != nil || rev >= revision {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failed returns a watch that ends with err.
func failed(err error) server.WatchResult {
	events, errs := make(chan server.EventBatch), make(chan error, 1)
	close(events)
	errs <- err
	return server.WatchResult{Eventc: events, Errorc: errs}
}
