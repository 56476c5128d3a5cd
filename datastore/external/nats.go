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

// wholeWatches is kine's NATS driver (v0.17.5) with watches that miss nothing. Its revision and its live
// events come from two consumers. Where the second is ahead, a watch that begins gets the past up to the
// older revision and the live events that come after it began, and what was told in between is lost. Here
// a watch reads the past when the driver has come to all that was told before.
type wholeWatches struct {
	server.Backend

	ctx  context.Context
	live broadcaster.Broadcaster
	told atomic.Int64 // the newest revision that went to the watches
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

// listen is the only one for whom the driver keeps a watch; it ends when that does, and with it all watches,
// whose clients then begin anew.
func (w *wholeWatches) listen() (chan server.EventBatch, error) {
	ctx, cancel := context.WithCancel(w.ctx)
	from := w.Backend.Watch(ctx, 0)
	out := make(chan server.EventBatch)
	go func() {
		defer cancel()
		defer close(out)
		for batch := range from.Eventc {
			// The driver begins from the start again when it has lost its connection.
			batch = batch.After(w.told.Load())
			if len(batch.Events) == 0 {
				continue
			}
			// Whoever is told of a change is to read it as well.
			if err := w.reach(ctx, batch.CurrentRev); err != nil {
				return
			}
			w.told.Store(max(w.told.Load(), batch.CurrentRev))
			select {
			case out <- batch:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

// Watch is server.Backend's.
func (w *wholeWatches) Watch(ctx context.Context, revision int64) server.WatchResult {
	ctx, cancel := context.WithCancel(ctx)
	live := w.live.Watch(ctx, w.listen)
	if err := w.reach(ctx, w.told.Load()); err != nil {
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

// reach waits until the driver reads what has been told already. It does not tell when; it takes milliseconds.
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

// failed is a watch that ends with err.
func failed(err error) server.WatchResult {
	events, errs := make(chan server.EventBatch), make(chan error, 1)
	close(events)
	errs <- err
	return server.WatchResult{Eventc: events, Errorc: errs}
}
