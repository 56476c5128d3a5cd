package joinclient

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/retry"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/wallclock"
)

// IsFinal reports whether a repeated request would get the same answer.
func IsFinal(err error) bool {
	if errors.Is(err, token.ErrWrongServer) {
		return true
	}
	var e *joinwire.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case joinwire.Starting, joinwire.Busy, joinwire.ServerFailed:
		return false
	}
	return true
}

// IsCode reports whether err is a server's refusal with this code.
func IsCode(err error, code joinwire.Code) bool {
	var e *joinwire.Error
	return errors.As(err, &e) && e.Code == code
}

const (
	firstPause = 500 * time.Millisecond
	maxPause   = 15 * time.Second
	// tokenTries is the number of times that a token is sent: a server may not have it yet if another one created it.
	tokenTries = 3
)

// Retry calls try until it succeeds, its error is final, or ctx ends. It calls wait with each other error, then
// pauses. It tries at once when the clock is set, since a wrong clock may have been the cause.
func Retry(ctx context.Context, try func(context.Context) error, wait func(error)) error {
	alarm, err := wallclock.NewAlarm()
	if err != nil {
		return err
	}
	defer alarm.Close()
	pauses := retry.Backoff{First: firstPause, Limit: maxPause, Spread: true}
	for tries := 1; ; tries++ {
		err := try(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case IsFinal(err) && (!IsCode(err, joinwire.BadToken) || tries >= tokenTries):
			return err
		}
		wait(err)
		// The pauses are spread, so that many nodes that start after a power cut do not all send at the same moment.
		if err := alarm.Set(pauses.Next()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case _, ok := <-alarm.Rung():
			if !ok {
				return alarm.Err()
			}
		}
	}
}
