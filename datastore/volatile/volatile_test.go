package volatile_test

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"github.com/k3s-io/kine/pkg/server"

	"github.com/umiak-io/umiak/datastore/volatile"
)

func TestMemoryStaysBounded(t *testing.T) {
	s := volatile.New(1, slog.New(slog.DiscardHandler))
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	// One Lease renewed every ten seconds is three million writes a year. Other keys come and go.
	rev, err := s.Create(t.Context(), "/lease", make([]byte, 500), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300_000 {
		var ok bool
		if rev, _, ok, err = s.Update(t.Context(), "/lease", make([]byte, 500), rev, 0); !ok || err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			key := fmt.Sprintf("/event/%d", i)
			if _, err := s.Create(t.Context(), key, make([]byte, 500), 0); err != nil {
				t.Fatal(err)
			}
			if _, _, ok, err := s.Delete(t.Context(), key, 0); !ok || err != nil {
				t.Fatal(err)
			}
		}
	}
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("grew by %d bytes", grown)
	}
	if n := s.Len(); n != 1 {
		t.Errorf("%d keys", n)
	}
	current, compact := s.Revisions()
	if compact < current-10000 {
		t.Errorf("history from %d at %d", compact, current)
	}
	runtime.KeepAlive(s)
}

// TestRestart checks that revisions from before a restart are older than all revisions after it.
func TestRestart(t *testing.T) {
	first := volatile.New(7<<36, slog.New(slog.DiscardHandler))
	rev, err := first.Create(t.Context(), "/a", []byte("x"), 0)
	if err != nil {
		t.Fatal(err)
	}
	second := volatile.New(8<<36, slog.New(slog.DiscardHandler))
	if wr := second.Watch(t.Context(), rev+1); wr.CompactRevision <= rev {
		t.Errorf("a watch from before the restart: compact revision %d", wr.CompactRevision)
	}
	if _, _, err := second.List(t.Context(), "/", "0", 0, rev, false); !errors.Is(err, server.ErrCompacted) {
		t.Errorf("a list from before the restart: %v", err)
	}
	now, _, err := second.List(t.Context(), "/", "0", 0, 0, false)
	if err != nil || now <= rev {
		t.Errorf("at %d after %d, %v", now, rev, err)
	}
	if wr := second.Watch(t.Context(), now+1); wr.CompactRevision != 0 {
		t.Error("a watch from now is refused")
	}
}
