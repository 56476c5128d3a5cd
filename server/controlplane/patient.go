package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/runtime"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/umiak-io/umiak/internal/retry"
)

// hookTimeout bounds how long /readyz waits for a hook.
const hookTimeout = 20 * time.Second

// late are the hooks that have not done yet what they should have, with the reason.
//
// Upstream ends the process when a hook fails. What these write are the cluster's own roles, priority classes and flow
// schemas, and a user's webhook, policy or full disk may refuse that for as long as it likes: the API must be there
// meanwhile, for it is by the API that people cure it.
type late struct {
	log *slog.Logger

	mu  sync.Mutex
	why map[string]error
}

// patient returns a hook that fails never: after hookTimeout it goes on in the background until it has succeeded.
func (l *late) patient(name string, hook genericapiserver.PostStartHookFunc) genericapiserver.PostStartHookFunc {
	return func(ctx genericapiserver.PostStartHookContext) error {
		done := make(chan struct{})
		go func() {
			defer runtime.HandleCrashWithContext(ctx)
			defer close(done)
			l.insist(ctx, name, func() error { return hook(ctx) })
		}()
		select {
		case <-done:
		case <-ctx.Done():
		case <-time.After(hookTimeout):
		}
		return nil
	}
}

// insist repeats f until it succeeds or ctx ends.
func (l *late) insist(ctx context.Context, name string, f func() error) {
	failed := func(err error, pause time.Duration) {
		l.log.Warn("the API server cannot write what it needs, trying again", "hook", name, "error", err, "in", pause)
	}
	_ = retry.Do(ctx, retry.Backoff{}, failed, func(context.Context) error {
		err := f()
		l.set(name, err)
		return err
	}) // it fails only when ctx ends
}

func (l *late) set(name string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.why, name)
		return
	}
	if l.why == nil {
		l.why = map[string]error{}
	}
	l.why[name] = err
}

// check names what is still to be done, for `umiak status`.
func (l *late) check(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(l.why)) {
		errs = append(errs, fmt.Errorf("%s: %w (look for a webhook or policy that refuses it)", name, l.why[name]))
	}
	return errors.Join(errs...)
}
