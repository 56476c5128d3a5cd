package ttl

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
)

// TestOneDeadlineAKey: a key that is written again and again takes no more memory.
func TestOneDeadlineAKey(t *testing.T) {
	k := New(func(context.Context, string, int64) error { return nil }, slog.New(slog.DiscardHandler))
	const keys = 7
	for i := range int64(1000) {
		k.Set(fmt.Sprint("key ", i%keys), i, 100-i%13)
	}
	if len(k.queue) != keys || k.Len() != keys {
		t.Errorf("%d deadlines in the queue, %d keys, want %d", len(k.queue), k.Len(), keys)
	}
	for i, d := range k.queue {
		if d.index != i || i > 0 && d.at.Before(k.queue[(i-1)/2].at) {
			t.Errorf("deadline %d of %s has index %d, or ends before its parent", i, d.key, d.index)
		}
	}
	for i := range keys {
		k.Set(fmt.Sprint("key ", i), 2000, 0)
	}
	if len(k.queue) != 0 || k.Len() != 0 {
		t.Errorf("%d deadlines, %d keys without a lease", len(k.queue), k.Len())
	}
}
