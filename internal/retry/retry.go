package retry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Backoff yields the pauses between attempts: each is twice as long as the one before. The zero value begins with one
// second and ends with one minute. It is not safe for concurrent use.
type Backoff struct {
	First time.Duration // the first pause; 0 means one second
	Limit time.Duration // the longest pause; 0 means one minute
	// Spread varies each pause between a half and one and a half of itself, so that many machines which failed in the
	// same moment do not try again in the same moment.
	Spread bool

	next time.Duration
}

// Next returns the pause before the next attempt and doubles the one after it.
func (b *Backoff) Next() time.Duration {
	first, limit := b.First, b.Limit
	if first <= 0 {
		first = time.Second
	}
	if limit <= 0 {
		limit = time.Minute
	}
	d := min(max(b.next, first), limit)
	b.next = min(2*d, limit)
	if b.Spread {
		return d/2 + rand.N(d)
	}
	return d
}

// Reset makes the next pause the first one again.
func (b *Backoff) Reset() { b.next = 0 }

// Wait pauses for Next. It returns the cause of ctx if that ends first.
func (b *Backoff) Wait(ctx context.Context) error { return Sleep(ctx, b.Next()) }

// Sleep pauses for d. It returns the cause of ctx if that ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// News remembers the last error that was reported. The zero value has none. It is not safe for concurrent use.
type News struct{ last string }

// Is reports whether err reads differently from the error of the call before. Nil is never news and clears the memory.
func (n *News) Is(err error) bool {
	if err == nil {
		n.last = ""
		return false
	}
	if text := err.Error(); text != n.last {
		n.last = text
		return true
	}
	return false
}

// Do calls f until it returns nil, or ctx ends: then the error wraps the cause of ctx and f's last error. After a
// failure that reads differently from the one before it calls failed, unless that is nil, with the pause that follows.
func Do(ctx context.Context, b Backoff, failed func(err error, pause time.Duration),
	f func(context.Context) error) error {
	var news News
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			pause := b.Next()
			if news.Is(err) && failed != nil {
				failed(err, pause)
			}
			if Sleep(ctx, pause) == nil {
				continue
			}
		}
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
}

// Forever calls f again whenever it returns, until ctx ends: f is something that runs on, as a watch. Before each
// further call it calls ended, unless that is nil, and pauses; a run of at least steady makes the pause the first one
// again.
func Forever(ctx context.Context, b Backoff, steady time.Duration, ended func(err error, pause time.Duration),
	f func(context.Context) error) {
	for ctx.Err() == nil {
		began := time.Now()
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) >= steady {
			b.Reset()
		}
		pause := b.Next()
		if ended != nil {
			ended(err, pause)
		}
		if Sleep(ctx, pause) != nil {
			return
		}
	}
}
