package controlplane

import (
	"context"
	"errors"
	"sync"
)

// running is a health check that knows in which phase of its life a component is.
type running struct {
	mu    sync.Mutex
	phase string // what it is waiting for; "" while it runs
}

func (r *running) set(phase string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
}

func (r *running) check(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase != "" {
		return errors.New(r.phase)
	}
	return nil
}
