package etcd

import (
	"testing"
	"time"
)

// TestBelieves: an address counts as a member's when it has answered there at two looks, with none between at which it did not.
func TestBelieves(t *testing.T) {
	k, at := &seeking{answers: map[uint64]time.Time{}}, time.Now()
	for i, step := range []struct {
		later time.Duration
		lost  bool
		want  bool
	}{{0, false, false}, {time.Millisecond, false, false}, {seekEvery, false, true}, {0, true, false}, {seekEvery - 1, false, false}, {seekEvery, false, true}} {
		at = at.Add(step.later)
		if step.lost {
			delete(k.answers, 1)
		}
		if got := k.believes(1, at); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}
