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

// Definite says whether asking again would bring the same answer.
func Definite(err error) bool {
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

// IsCode says whether a server has refused for this reason.
func IsCode(err error, code joinwire.Code) bool {
	var e *joinwire.Error
	return errors.As(err, &e) && e.Code == code
}

const (
	firstPause = 500 * time.Millisecond
	maxPause   = 15 * time.Second
	// tokenTries is how often a token is offered: a server may be a moment behind the one on which it was made.
	tokenTries = 3
)

// Insist repeats try until it succeeds, the answer is definite, or ctx ends. wait hears why it goes on. It does
// not wait any longer once the clock is set, which may have been what was wrong.
func Insist(ctx context.Context, try func(context.Context) error, wait func(error)) error {
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
		case Definite(err) && (!IsCode(err, joinwire.BadToken) || tries >= tokenTries):
			return err
		}
		wait(err)
		// A thousand nodes that come back after a power cut do not all ask in the same moment.
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
