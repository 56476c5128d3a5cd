package storetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// events reads n events of a watch.
func (s *suite) events(t *testing.T, w clientv3.WatchChan, n int) []*clientv3.Event {
	t.Helper()
	var out []*clientv3.Event
	for len(out) < n {
		select {
		case r, ok := <-w:
			if !ok || r.Err() != nil {
				t.Fatalf("the watch ended after %d of %d events: %v", len(out), n, r.Err())
			}
			out = append(out, r.Events...)
		case <-s.ctx.Done():
			t.Fatalf("%d of %d events", len(out), n)
		}
	}
	for i := 1; i < len(out); i++ {
		if out[i].Kv.ModRevision <= out[i-1].Kv.ModRevision {
			t.Fatalf("event at %d after %d", out[i].Kv.ModRevision, out[i-1].Kv.ModRevision)
		}
	}
	return out
}

func (s *suite) watch(key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	return s.c.Watch(clientv3.WithRequireLeader(s.ctx), key, append(opts, clientv3.WithPrevKV(),
		clientv3.WithCreatedNotify())...)
}

func (s *suite) watchLive(t *testing.T) {
	w := s.watch("/w/", clientv3.WithRange("/w0"))
	if r := <-w; !r.Created {
		t.Fatalf("first message %v", r)
	}
	one := s.mustCreate(t, "/w/a", "1")
	s.mustCreate(t, "/x", "other")
	two := s.mustUpdate(t, "/w/a", "2", one)
	three := s.mustDelete(t, "/w/a", two)
	ev := s.events(t, w, 3)
	if !ev[0].IsCreate() || ev[0].Kv.ModRevision != one || !ev[1].IsModify() || ev[1].Kv.ModRevision != two ||
		ev[2].Type != mvccpb.DELETE || ev[2].Kv.ModRevision != three {
		t.Fatalf("events %v", ev)
	}
}

func (s *suite) watchOld(t *testing.T) {
	const n = 1700 // more than are read, or kept in memory, at once
	first := s.mustCreate(t, "/w/a", "0")
	rev := first
	for i := 1; i < n; i++ {
		rev = s.mustUpdate(t, "/w/a", fmt.Sprint(i), rev)
	}
	ev := s.events(t, s.watch("/w/", clientv3.WithRange("/w0"), clientv3.WithRev(first)), n)
	for i, e := range ev {
		if string(e.Kv.Value) != fmt.Sprint(i) || e.Kv.ModRevision != first+int64(i) {
			t.Fatalf("event %d: %q at %d", i, e.Kv.Value, e.Kv.ModRevision)
		}
	}
	w := s.watch("/w/", clientv3.WithRange("/w0"), clientv3.WithRev(rev+1))
	s.mustUpdate(t, "/w/a", "live", rev)
	if ev := s.events(t, w, 1); string(ev[0].Kv.Value) != "live" {
		t.Fatalf("event %v", ev[0])
	}
}

func (s *suite) watchPrev(t *testing.T) {
	one := s.mustCreate(t, "/w/a", "1")
	live := s.watch("/w/", clientv3.WithRange("/w0"), clientv3.WithRev(one))
	two := s.mustUpdate(t, "/w/a", "2", one)
	s.mustDelete(t, "/w/a", two)
	s.mustCreate(t, "/w/a", "4")
	for name, w := range map[string]clientv3.WatchChan{"live": live, "past": s.watch("/w/", clientv3.WithRange("/w0"),
		clientv3.WithRev(one))} {
		for i, e := range s.events(t, w, 4) {
			want := []string{"", "1", "2", ""}[i]
			got := ""
			if e.PrevKv != nil {
				got = string(e.PrevKv.Value)
			}
			if got != want || (e.PrevKv == nil) != (want == "") {
				t.Fatalf("%s event %d: previous %v, want %q", name, i, e.PrevKv, want)
			}
		}
	}
}

func (s *suite) watchMany(t *testing.T) {
	const watchers, writers, each = 20, 4, 100
	start := s.get(t, "/").Header.Revision
	var wg sync.WaitGroup
	for i := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range each {
				if _, err := Create(s.ctx, s.c, fmt.Sprintf("/m/%d/%d", i, j), "x"); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	for range watchers {
		if ev := s.events(t, s.watch("/m/", clientv3.WithRange("/m0"), clientv3.WithRev(start+1)),
			writers*each); len(ev) != writers*each {
			t.Errorf("%d events", len(ev))
		}
	}
	wg.Wait()
}

func (s *suite) watchSlow(t *testing.T) {
	// The watch is not read while more is written than any buffer holds; no event may be missing.
	w := s.watch("/w/", clientv3.WithRange("/w0"))
	<-w
	const n = 3000
	value := string(make([]byte, 1000))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range n / 8 {
				if _, err := Create(s.ctx, s.c, fmt.Sprintf("/w/%d/%d", i, j), value); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	s.events(t, w, n)
}

func (s *suite) watchFuture(t *testing.T) {
	rev := s.mustCreate(t, "/a", "1")
	w := s.watch("/a", clientv3.WithRev(rev+1000))
	for {
		select {
		case r, ok := <-w:
			if !ok || r.Canceled {
				return
			}
		case <-s.ctx.Done():
			t.Fatal("a watch from a future revision stays silent")
		}
	}
}

func (s *suite) progress(t *testing.T) {
	ctx := clientv3.WithRequireLeader(s.ctx)
	w := s.c.Watch(ctx, "/w/", clientv3.WithRange("/w0"), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	<-w
	rev := s.mustCreate(t, "/other", "x")
	for {
		if err := s.c.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-w:
			if r.Err() != nil {
				t.Fatal(r.Err())
			}
			if r.IsProgressNotify() && r.Header.Revision >= rev {
				return
			}
		case <-time.After(100 * time.Millisecond): // the interval of the API server
		case <-s.ctx.Done():
			t.Fatal("no progress")
		}
	}
}
