package eventually

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, calls := time.Now(), 0
		after := func(d time.Duration) func() error {
			return func() error {
				calls++
				if time.Since(begun) >= d {
					return nil
				}
				return errNot
			}
		}
		if err := within(time.Minute, after(time.Second)); err != nil || time.Since(begun) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
		if err := within(time.Minute, after(time.Hour)); err != errNot || time.Since(begun) > time.Minute+2*time.Second {
			t.Errorf("%v after %s and %d calls", err, time.Since(begun), calls)
		}
	})
}
