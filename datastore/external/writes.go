package external

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/k3s-io/kine/pkg/server"
)

// writes holds the outcome of the last write to the database. It needs no writes of its own: leases are written every
// few seconds anyway.
type writes struct {
	log     *slog.Logger
	scrub   func(error) error
	failing func(bool) // called when writes begin or cease to fail; may be nil

	mu     sync.Mutex
	err    error     // of the last write; nil if it succeeded
	since  time.Time // since when writes fail
	logged time.Time // when text was logged
	text   string
}

// logAgain is the minimum time between two log lines with different errors while writes fail.
const logAgain = 10 * time.Second

// record stores the outcome of a write. A write that its client canceled is ignored.
func (w *writes) record(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	if errors.Is(err, server.ErrKeyExists) {
		err = nil // the database has answered
	}
	if err != nil {
		err = w.scrub(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		if w.err == nil {
			w.since, w.logged = time.Now(), time.Time{}
		}
		if text := err.Error(); w.logged.IsZero() || text != w.text && time.Since(w.logged) > logAgain {
			w.logged, w.text = time.Now(), text
			w.log.Error("the database takes no writes", "error", err)
		}
		if w.err == nil && w.failing != nil {
			w.failing(true)
		}
	case w.err != nil:
		w.log.Info("the database takes writes again", "after", time.Since(w.since).Round(time.Second))
		if w.failing != nil {
			w.failing(false)
		}
	}
	w.err = err
}

// state returns since when writes fail, and the error of the last one; nil if it succeeded.
func (w *writes) state() (since time.Time, failed error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since, w.err
}

// recorded is a Backend that records the outcome of its writes.
type recorded struct {
	server.Backend
	writes *writes
}

func (r recorded) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	rev, err := r.Backend.Create(ctx, key, value, lease)
	r.writes.record(err)
	return rev, err
}

func (r recorded) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue,
	bool, error) {
	rev, kv, ok, err := r.Backend.Update(ctx, key, value, revision, lease)
	r.writes.record(err)
	return rev, kv, ok, err
}

func (r recorded) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	rev, kv, ok, err := r.Backend.Delete(ctx, key, revision)
	r.writes.record(err)
	return rev, kv, ok, err
}
