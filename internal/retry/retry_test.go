package retry

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestBackoffDoublesUpToItsLimit(t *testing.T) {
	for name, c := range map[string]struct {
		b    Backoff
		want []time.Duration
	}{
		"zero value": {Backoff{}, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}},
		"its limit": {Backoff{First: 20 * time.Second}, []time.Duration{20 * time.Second, 40 * time.Second,
			time.Minute, time.Minute}},
		"first over limit": {Backoff{First: time.Hour, Limit: time.Second}, []time.Duration{time.Second, time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []time.Duration
			for range c.want {
				got = append(got, c.b.Next())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("pauses %v, want %v", got, c.want)
			}
			c.b.Reset()
			if d := c.b.Next(); d != c.want[0] {
				t.Errorf("after Reset the pause is %v, want %v", d, c.want[0])
			}
		})
	}
	b := Backoff{First: time.Second, Limit: time.Second, Spread: true}
	for range 1000 {
		if d := b.Next(); d < time.Second/2 || d >= 3*time.Second/2 {
			t.Fatalf("a spread pause of one second is %v", d)
		}
	}
}

func TestDoReportsEachFailureOnceAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := []error{errors.New("a"), errors.New("a"), errors.New("b"), nil}
		var reported []string
		var pauses []time.Duration
		calls, began := 0, time.Now()
		err := Do(t.Context(), Backoff{}, func(err error, pause time.Duration) {
			reported, pauses = append(reported, err.Error()), append(pauses, pause)
		}, func(context.Context) error {
			calls++
			return answers[calls-1]
		})
		if err != nil || calls != 4 || time.Since(began) != 7*time.Second {
			t.Errorf("Do: %v after %d calls and %v, want nil after 4 and 7s", err, calls, time.Since(began))
		}
		if !slices.Equal(reported, []string{"a", "b"}) || !slices.Equal(pauses,
			[]time.Duration{time.Second, 4 * time.Second}) {
			t.Errorf("reported %v with pauses %v", reported, pauses)
		}

		stopped, failed := errors.New("stopped"), errors.New("failed")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second/2, func() { cancel(stopped) })
		err = Do(ctx, Backoff{}, nil, func(context.Context) error { return failed })
		if !errors.Is(err, stopped) || !errors.Is(err, failed) {
			t.Errorf("Do with a context that ended: %v, want both reasons", err)
		}
	})
}

func TestForeverBeginsWithTheFirstPauseAfterASteadyRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var pauses []time.Duration
		runs := 0
		Forever(ctx, Backoff{}, time.Minute, func(_ error, pause time.Duration) { pauses = append(pauses, pause) },
			func(ctx context.Context) error {
				switch runs++; runs {
				case 3:
					return Sleep(ctx, time.Minute)
				case 5:
					cancel()
				}
				return errors.New("ended")
			})
		if want := []time.Duration{time.Second, 2 * time.Second, time.Second, 2 * time.Second}; !slices.Equal(pauses,
			want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
	})
}

func TestNewsForgetsWhatWasMended(t *testing.T) {
	var n News
	a := errors.New("a")
	if got := []bool{n.Is(a), n.Is(a), n.Is(nil), n.Is(a)}; !slices.Equal(got, []bool{true, false, false, true}) {
		t.Errorf("a, a, nil, a: %v", got)
	}
}
