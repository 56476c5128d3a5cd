package etcd

import (
	"testing"
	"time"
)

// TestConfirmed checks that an address counts as a member's once it has answered there at two turns without a failure
// in between.
func TestConfirmed(t *testing.T) {
	k, at := &seekState{answers: map[uint64]time.Time{}}, time.Now()
	for i, step := range []struct {
		later time.Duration
		lost  bool
		want  bool
	}{{0, false, false}, {time.Millisecond, false, false}, {seekInterval, false, true}, {0, true, false},
		{seekInterval - 1, false, false}, {seekInterval, false, true}} {
		at = at.Add(step.later)
		if step.lost {
			delete(k.answers, 1)
		}
		if got := k.confirmed(1, at); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
