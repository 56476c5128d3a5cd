package etcd

import (
	"context"
	"time"
)

// RemoveStaleAt is for tests.
func (s *Server) RemoveStaleAt(ctx context.Context, first map[uint64]time.Time, now time.Time) {
	s.removeStaleAt(ctx, first, now)
}

// StartLimit is for tests.
const StartLimit = startLimit
