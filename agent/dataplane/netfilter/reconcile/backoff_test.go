package reconcile

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Unix(0, 0)
	var got []time.Duration
	for range 9 {
		got = append(got, b.next(now))
		b.repaired(now, time.Millisecond, true)
		now = now.Add(time.Second)
	}
	if got[0] != 20*time.Millisecond || got[1] != 40*time.Millisecond || got[8] != time.Second {
		t.Errorf("%v", got)
	}
	b.repaired(now, time.Second, true)
	for range 9 {
		got = append(got, b.next(now))
	}
	if got[len(got)-1] != 10*time.Second {
		t.Errorf("an expensive repair is made every %v", got[len(got)-1])
	}
	if d := b.next(now.Add(time.Minute)); d != 20*time.Millisecond {
		t.Errorf("forgiven after a minute: %v", d)
	}
	b.repaired(now, time.Millisecond, false)
	for range 9 {
		if d := b.next(now); d != 50*time.Millisecond {
			t.Fatalf("a change that needs no repair is looked at after %v", d)
		}
		b.repaired(now, time.Millisecond, false)
	}
}
