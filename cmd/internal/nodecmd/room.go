package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// room has the pauses between two attempts: nothing tells when there is room on a disk.
var room = lifecycle.Policy{First: time.Second, Most: 10 * time.Second}

// WithRoom calls build, and again with pauses as long as it fails because a disk is full: what is written before the parts
// run has nobody else to try it again. The preparation and the log say what is missing.
func WithRoom[T any](ctx context.Context, p *Preparation, log *slog.Logger, build func() (T, error)) (T, error) {
	for attempt := 1; ; attempt++ {
		out, err := build()
		if !atomicfile.NoSpace(err) {
			return out, err
		}
		log.Warn("the disk is full: make room", "error", err, "attempt", attempt)
		p.Step(fmt.Sprintf("room, since the disk is full: make room (%v)", err))
		next := time.NewTimer(room.Pause(attempt))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
			return out, errors.Join(err, context.Cause(ctx))
		}
	}
}
