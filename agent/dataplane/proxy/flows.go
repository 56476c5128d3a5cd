package proxy

import (
	"context"
	"log/slog"
	"maps"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/proxy/conntrack"
)

// flows removes conntrack entries that lead UDP packets to endpoints which are gone. That reads all of
// conntrack, so it is done beside the sync loop, and what comes meanwhile is taken together.
type flows struct {
	ct   conntrack.Interface
	log  *slog.Logger
	wake chan struct{}

	mu      sync.Mutex
	pending map[v1.IPFamily]*stale
}

func newFlows(ct conntrack.Interface, log *slog.Logger) *flows {
	return &flows{ct: ct, log: log, wake: make(chan struct{}, 1), pending: map[v1.IPFamily]*stale{}}
}

// clean asks for it.
func (f *flows) clean(s stale) {
	if len(s.ports) == 0 {
		return
	}
	f.mu.Lock()
	if p := f.pending[s.family]; p == nil {
		f.pending[s.family] = &s
	} else {
		maps.Copy(p.ports, s.ports)
		for name := range s.ports {
			delete(p.endpoints, name) // those of a port that went must not stay
		}
		maps.Copy(p.endpoints, s.endpoints)
	}
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *flows) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		todo := f.pending
		f.pending = map[v1.IPFamily]*stale{}
		f.mu.Unlock()
		for family, s := range todo {
			conntrack.CleanStaleEntries(f.ct, family, s.ports, s.endpoints)
		}
	}
}
