package wallclock

import (
	"testing"
	"time"
)

func TestAlarm(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Set(5 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		select {
		case _, ok := <-a.Rung():
			if !ok {
				t.Fatal(a.Err())
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it does not ring")
		}
	}
	a.Close()
	if _, ok := <-a.Rung(); ok {
		t.Error("it rings after it was closed")
	}
}

func TestDoubt(t *testing.T) {
	for at, doubted := range map[time.Time]bool{
		time.Unix(0, 0): true, Released.Add(-time.Second): true,
		Released: false, Released.AddDate(4, 0, 0): false,
		Released.AddDate(10, 0, 0): true,
	} {
		if got := Doubt(at); (got != "") != doubted {
			t.Errorf("%v: %q", at, got)
		}
	}
}
