package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/retry"
)

// AwaitRoom calls build, and calls it again with pauses as long as it fails because a disk is full: nothing else tries
// again what is written before the parts run. The preparation and the log name what is missing.
func AwaitRoom[T any](ctx context.Context, p *Preparation, log *slog.Logger, build func() (T, error)) (T, error) {
	pause := retry.Backoff{Limit: 10 * time.Second} // nothing reports that there is room on a disk again
	for attempt := 1; ; attempt++ {
		out, err := build()
		if !atomicfile.NoSpace(err) {
			return out, err
		}
		log.Warn("the disk is full: make room", "error", err, "attempt", attempt)
		p.Step(fmt.Sprintf("room, since the disk is full: make room (%v)", err))
		if ended := pause.Wait(ctx); ended != nil {
			return out, errors.Join(err, ended)
		}
	}
}
