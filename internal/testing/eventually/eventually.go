// Package eventually waits in tests for conditions that no event announces. Whatever has a channel, a watch or a status
// to wait for is waited for there instead.
//
// It imports nothing of umiak.
package eventually

import (
	"errors"
	"testing"
	"time"
)

const (
	// timeout bounds a wait. A busy machine takes long; a test that passes never waits so long.
	timeout = 40 * time.Second
	// pause is the time between two looks at a condition.
	pause = 5 * time.Millisecond
)

var errNot = errors.New("not yet")

// True waits until ok returns true. It ends the test with what was waited for when that takes too long.
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	Nil(t, what, func() error {
		if ok() {
			return nil
		}
		return errNot
	})
}

// Nil waits until f returns nil. It ends the test with what was waited for and f's last error when that takes too long.
func Nil(t testing.TB, what string, f func() error) {
	t.Helper()
	Within(t, timeout, what, f)
}

// Within is Nil with a limit of its own, for what takes long.
func Within(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	if err := within(limit, f); err != nil {
		t.Fatalf("waited %s for %s: %v", limit, what, err)
	}
}

// within calls f until it returns nil, and returns its last error once limit has passed.
func within(limit time.Duration, f func() error) error {
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
