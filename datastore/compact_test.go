package datastore

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"
)

func TestHistoryIsGivenUp(t *testing.T) {
	st, err := Open(t.Context(), Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	s := st.(*store)
	defer s.durable.Close()
	var last int64
	for i := range 20 {
		if last, err = s.durable.Create(t.Context(), fmt.Sprint("/k/", i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.compactEvery(ctx, 5*time.Millisecond)
	}()
	end := time.Now().Add(10 * time.Second)
	for {
		current, compact := s.durable.Revisions()
		if compact == last && current == last {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("compacted to %d of %d", compact, current)
		}
		time.Sleep(time.Millisecond) // nothing tells when it is done
	}
	cancel()
	<-done
	if got, compact := s.durable.Revisions(); compact > got {
		t.Errorf("compacted to %d of %d", compact, got)
	}
}
