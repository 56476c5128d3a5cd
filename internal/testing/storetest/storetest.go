// Package storetest is the contract between the API server and a datastore, as tests that use an etcd client.
//
// Every backend runs it in one line: storetest.Run(t, func(t *testing.T) *clientv3.Client { … }). It sends the
// requests of kube-apiserver's etcd3 storage and checks the answers on which that storage relies.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Factory returns a client of a new, empty store, which ends with the test.
type Factory func(t *testing.T) *clientv3.Client

// WatchFuture is the name of the one test that requires more than etcd does: a watch from a revision far in the
// future must end. A watch of etcd stays silent until the revision is reached.
const WatchFuture = "WatchFuture"

// Run runs the suite without the named tests.
func Run(t *testing.T, open Factory, without ...string) {
	for name, f := range map[string]func(*suite, *testing.T){
		"CreateOnce":              (*suite).createOnce,
		"UpdateComparesRevision":  (*suite).update,
		"DeleteComparesRevision":  (*suite).remove,
		"RecreateAfterDelete":     (*suite).recreate,
		"RecreateWhileOthersDo":   (*suite).recreateMany,
		"GetAtRevision":           (*suite).getAtRevision,
		"ListPages":               (*suite).pages,
		"ListIsASnapshot":         (*suite).snapshot,
		"CountOnly":               (*suite).count,
		"OddKeysAndValues":        (*suite).odd,
		"WatchLive":               (*suite).watchLive,
		"WatchFromOldRevision":    (*suite).watchOld,
		"WatchPreviousValue":      (*suite).watchPrev,
		"WatchManyWhileWriting":   (*suite).watchMany,
		"WatchSlow":               (*suite).watchSlow,
		WatchFuture:               (*suite).watchFuture,
		"CompactedReads":          (*suite).compacted,
		"CompactKeepsCurrent":     (*suite).compactKeeps,
		"CompactErrors":           (*suite).compactErrors,
		"APIServerCompactionKey":  (*suite).compactKey,
		"Lease":                   (*suite).lease,
		"LeaseRenewedByWrite":     (*suite).leaseRenewed,
		"ProgressOnRequest":       (*suite).progress,
		"ConcurrentCreateOneWins": (*suite).race,
		"RevisionsGrowByOne":      (*suite).dense,
	} {
		if slices.Contains(without, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			f(&suite{c: open(t), ctx: ctx}, t)
		})
	}
}

type suite struct {
	c   *clientv3.Client
	ctx context.Context
}

// Create creates a key as etcd3 storage does and returns its revision, 0 if the key exists.
func Create(ctx context.Context, c *clientv3.Client, key, value string, opts ...clientv3.OpOption) (int64, error) {
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value,
		opts...)).Commit()
	if err != nil || !r.Succeeded {
		return 0, err
	}
	return r.Header.Revision, nil
}

// Update writes a key that is at a revision and returns the new revision. If the key is not at rev, it returns 0 and
// the current key.
func Update(ctx context.Context, c *clientv3.Client, key, value string, rev int64, opts ...clientv3.OpOption) (int64,
	*mvccpb.KeyValue, error) {
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", rev)).Then(clientv3.OpPut(key, value,
		opts...)).Else(clientv3.OpGet(key)).Commit()
	return outcome(r, err)
}

// Delete removes a key that is at a revision and returns the revision of the deletion. If the key is not at rev, it
// returns 0 and the current key.
func Delete(ctx context.Context, c *clientv3.Client, key string, rev int64) (int64, *mvccpb.KeyValue, error) {
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=",
		rev)).Then(clientv3.OpDelete(key)).Else(clientv3.OpGet(key)).Commit()
	return outcome(r, err)
}

func outcome(r *clientv3.TxnResponse, err error) (int64, *mvccpb.KeyValue, error) {
	if err != nil {
		return 0, nil, err
	}
	if r.Succeeded {
		return r.Header.Revision, nil, nil
	}
	if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		return 0, kvs[0], nil
	}
	return 0, nil, nil
}

func (s *suite) mustCreate(t *testing.T, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	rev, err := Create(s.ctx, s.c, key, value, opts...)
	if err != nil || rev == 0 {
		t.Fatalf("create %s: revision %d, %v", key, rev, err)
	}
	return rev
}

func (s *suite) mustUpdate(t *testing.T, key, value string, rev int64, opts ...clientv3.OpOption) int64 {
	t.Helper()
	next, kv, err := Update(s.ctx, s.c, key, value, rev, opts...)
	if err != nil || next == 0 {
		t.Fatalf("update %s at %d: there is %v, %v", key, rev, kv, err)
	}
	return next
}

func (s *suite) mustDelete(t *testing.T, key string, rev int64) int64 {
	t.Helper()
	next, kv, err := Delete(s.ctx, s.c, key, rev)
	if err != nil || next == 0 {
		t.Fatalf("delete %s at %d: there is %v, %v", key, rev, kv, err)
	}
	return next
}

func (s *suite) get(t *testing.T, key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	t.Helper()
	r, err := s.c.Get(s.ctx, key, opts...)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return r
}

func (s *suite) compact(t *testing.T, rev int64) {
	t.Helper()
	if _, err := s.c.Compact(s.ctx, rev); err != nil {
		t.Fatalf("compact %d: %v", rev, err)
	}
}

func (s *suite) createOnce(t *testing.T) {
	before := s.get(t, "/a").Header.Revision
	if before < 1 {
		t.Fatalf("revision %d of an empty store", before)
	}
	rev := s.mustCreate(t, "/a", "1")
	if rev != before+1 {
		t.Fatalf("revision %d after %d", rev, before)
	}
	if again, err := Create(s.ctx, s.c, "/a", "2"); again != 0 || err != nil {
		t.Fatalf("created twice: %d, %v", again, err)
	}
	r := s.get(t, "/a")
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "1" || r.Kvs[0].ModRevision != rev ||
		r.Kvs[0].CreateRevision != rev || r.Header.Revision < rev || r.Count != 1 {
		t.Fatalf("got %v", r)
	}
	if r := s.get(t, "/b"); len(r.Kvs) != 0 || r.Header.Revision < rev {
		t.Fatalf("a key that is not there: %v", r)
	}
}

func (s *suite) update(t *testing.T) {
	one := s.mustCreate(t, "/a", "1")
	two := s.mustUpdate(t, "/a", "2", one)
	next, kv, err := Update(s.ctx, s.c, "/a", "3", one)
	if err != nil || next != 0 || kv == nil || string(kv.Value) != "2" || kv.ModRevision != two ||
		kv.CreateRevision != one {
		t.Fatalf("a stale update: %d, %v, %v", next, kv, err)
	}
	if next, kv, err := Update(s.ctx, s.c, "/none", "3", one); err != nil || next != 0 || kv != nil {
		t.Fatalf("an update of nothing: %d, %v, %v", next, kv, err)
	}
	// GuaranteedUpdate of an object that does not exist compares with revision 0.
	if next, _, err := Update(s.ctx, s.c, "/new", "1", 0); err != nil || next == 0 {
		t.Fatalf("update that creates: %d, %v", next, err)
	}
	if next, kv, err := Update(s.ctx, s.c, "/new", "2", 0); err != nil || next != 0 || kv == nil ||
		string(kv.Value) != "1" {
		t.Fatalf("update that would create: %d, %v, %v", next, kv, err)
	}
}

func (s *suite) remove(t *testing.T) {
	one := s.mustCreate(t, "/a", "1")
	two := s.mustUpdate(t, "/a", "2", one)
	if next, kv, err := Delete(s.ctx, s.c, "/a", one); err != nil || next != 0 || kv == nil || kv.ModRevision != two {
		t.Fatalf("a stale delete: %d, %v, %v", next, kv, err)
	}
	three := s.mustDelete(t, "/a", two)
	if three <= two {
		t.Fatalf("deleted at %d after %d", three, two)
	}
	if r := s.get(t, "/a"); len(r.Kvs) != 0 || r.Header.Revision < three {
		t.Fatalf("after the delete: %v", r)
	}
	if next, kv, err := Delete(s.ctx, s.c, "/a", two); err != nil || next != 0 || kv != nil {
		t.Fatalf("deleted twice: %d, %v, %v", next, kv, err)
	}
	if next, kv, err := Update(s.ctx, s.c, "/a", "3", three); err != nil || next != 0 || kv != nil {
		t.Fatalf("updated a tombstone: %d, %v, %v", next, kv, err)
	}
}

func (s *suite) recreate(t *testing.T) {
	for i := range 3 {
		rev := s.mustCreate(t, "/a", fmt.Sprint(i))
		kv := s.get(t, "/a").Kvs[0]
		if kv.CreateRevision != rev || kv.ModRevision != rev || string(kv.Value) != fmt.Sprint(i) {
			t.Fatalf("round %d: created at %d, got %v", i, rev, kv)
		}
		s.mustDelete(t, "/a", rev)
	}
}

// recreateMany creates keys again concurrently; each create must return the revision of its own key.
func (s *suite) recreateMany(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			key := fmt.Sprintf("/m/%d", i)
			for range 15 {
				rev, err := Create(s.ctx, s.c, key, "x")
				if err != nil || rev == 0 {
					t.Errorf("create %s: revision %d, %v", key, rev, err)
					return
				}
				r, err := s.c.Get(s.ctx, key)
				if err != nil || len(r.Kvs) != 1 || r.Kvs[0].CreateRevision != rev || r.Kvs[0].ModRevision != rev {
					t.Errorf("created at %d, got %v, %v", rev, r, err)
					return
				}
				if next, kv, err := Delete(s.ctx, s.c, key, rev); err != nil || next == 0 {
					t.Errorf("delete %s at %d: there is %v, %v", key, rev, kv, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (s *suite) getAtRevision(t *testing.T) {
	one := s.mustCreate(t, "/a", "1")
	two := s.mustUpdate(t, "/a", "2", one)
	three := s.mustDelete(t, "/a", two)
	four := s.mustCreate(t, "/a", "4")
	for rev, want := range map[int64]string{one: "1", two: "2", three: "", four: "4"} {
		r := s.get(t, "/a", clientv3.WithRev(rev))
		got := ""
		if len(r.Kvs) > 0 {
			got = string(r.Kvs[0].Value)
		}
		if got != want {
			t.Fatalf("at %d: %q, want %q", rev, got, want)
		}
		l := s.get(t, "/", clientv3.WithRev(rev), clientv3.WithRange("0"))
		if len(l.Kvs) != len(r.Kvs) {
			t.Fatalf("list at %d: %v", rev, l.Kvs)
		}
	}
	if _, err := s.c.Get(s.ctx, "/a", clientv3.WithRev(four+1)); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Fatalf("a revision to come: %v", err)
	}
}

func (s *suite) pages(t *testing.T) {
	const n, page = 25, 10
	var want []string
	for i := range n {
		key := fmt.Sprintf("/p/%03d", i)
		want = append(want, key)
		s.mustCreate(t, key, "x")
	}
	s.mustCreate(t, "/o", "x")
	s.mustCreate(t, "/q", "x")
	var got []string
	rev := int64(0)
	for key, left := "/p/", int64(n); ; {
		r := s.get(t, key, clientv3.WithRange("/p0"), clientv3.WithLimit(page), clientv3.WithRev(rev))
		if rev == 0 {
			rev = r.Header.Revision
			s.mustCreate(t, "/p/0005", "late") // must not appear in the pages to come
			s.mustDelete(t, "/p/020", s.get(t, "/p/020").Kvs[0].ModRevision)
		}
		if r.Count != left {
			t.Fatalf("%d left, want %d", r.Count, left)
		}
		for _, kv := range r.Kvs {
			got = append(got, string(kv.Key))
		}
		left -= int64(len(r.Kvs))
		if r.More != (left > 0) {
			t.Fatalf("more is %v with %d left", r.More, left)
		}
		if !r.More {
			break
		}
		key = got[len(got)-1] + "\x00"
	}
	if !slices.Equal(got, want) {
		t.Fatalf("got %v", got)
	}
	if r := s.get(t, "/p/", clientv3.WithRange("/p0"), clientv3.WithKeysOnly()); len(r.Kvs) != n ||
		len(r.Kvs[0].Value) != 0 || r.Kvs[0].ModRevision == 0 {
		t.Fatalf("keys only: %d keys, %v", len(r.Kvs), r.Kvs[0])
	}
}

func (s *suite) snapshot(t *testing.T) {
	// Two keys are updated in turn; in every list their values differ by at most one.
	a, b := s.mustCreate(t, "/s/a", "0"), s.mustCreate(t, "/s/b", "0")
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for i := 1; ctx.Err() == nil; i++ {
			var err error
			if a, _, err = Update(ctx, s.c, "/s/a", fmt.Sprint(i), a); err != nil {
				return
			}
			if b, _, err = Update(ctx, s.c, "/s/b", fmt.Sprint(i), b); err != nil {
				return
			}
		}
	}()
	defer wg.Wait()
	defer cancel()
	for range 200 {
		r := s.get(t, "/s/", clientv3.WithRange("/s0"))
		if len(r.Kvs) != 2 {
			t.Fatalf("%d keys", len(r.Kvs))
		}
		var x, y int
		_, _ = fmt.Sscan(string(r.Kvs[0].Value), &x)
		_, _ = fmt.Sscan(string(r.Kvs[1].Value), &y)
		if x != y && x != y+1 {
			t.Fatalf("a is %d, b is %d", x, y)
		}
		for _, kv := range r.Kvs {
			if kv.ModRevision > r.Header.Revision {
				t.Fatalf("revision %d in a list at %d", kv.ModRevision, r.Header.Revision)
			}
		}
	}
}

func (s *suite) count(t *testing.T) {
	for i := range 5 {
		rev := s.mustCreate(t, fmt.Sprintf("/c/%d", i), "x")
		if i%2 == 1 {
			s.mustUpdate(t, fmt.Sprintf("/c/%d", i), "y", rev)
		}
	}
	s.mustDelete(t, "/c/2", s.get(t, "/c/2").Kvs[0].ModRevision)
	r := s.get(t, "/c/", clientv3.WithRange("/c0"), clientv3.WithCountOnly())
	if r.Count != 4 || len(r.Kvs) != 0 {
		t.Fatalf("count %d, %d keys", r.Count, len(r.Kvs))
	}
	if r := s.get(t, "/none/", clientv3.WithRange("/none0"), clientv3.WithCountOnly()); r.Count != 0 {
		t.Fatalf("count %d of nothing", r.Count)
	}
}

func (s *suite) odd(t *testing.T) {
	for _, key := range []string{"/odd/ü", "/odd/%_'\"\\", "/odd/a\x00b", "/odd/\xff\xfe", "/odd/" +
		string(make([]byte, 900))} {
		for _, value := range []string{"", "\x00\xff", string(make([]byte, 1<<20))} {
			rev := s.mustCreate(t, key, value)
			r := s.get(t, key)
			if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != value || string(r.Kvs[0].Key) != key {
				t.Fatalf("%q: %d keys", key, len(r.Kvs))
			}
			s.mustDelete(t, key, rev)
		}
	}
}

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

func (s *suite) compacted(t *testing.T) {
	one := s.mustCreate(t, "/a", "1")
	two := s.mustUpdate(t, "/a", "2", one)
	three := s.mustUpdate(t, "/a", "3", two)
	s.compact(t, two)
	if _, err := s.c.Get(s.ctx, "/a", clientv3.WithRev(one)); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatalf("read below: %v", err)
	}
	if r := s.get(t, "/a", clientv3.WithRev(two)); string(r.Kvs[0].Value) != "2" {
		t.Fatalf("read at: %v", r.Kvs)
	}
	if _, err := s.c.Get(s.ctx, "/", clientv3.WithRev(one), clientv3.WithRange("0")); !errors.Is(err,
		rpctypes.ErrCompacted) {
		t.Fatalf("list below: %v", err)
	}
	for r := range s.watch("/a", clientv3.WithRev(one)) {
		if r.Created {
			continue
		}
		if !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision < two {
			t.Fatalf("watch below: %v, compact revision %d", r.Err(), r.CompactRevision)
		}
		break
	}
	if ev := s.events(t, s.watch("/a", clientv3.WithRev(two+1)), 1); ev[0].Kv.ModRevision != three {
		t.Fatalf("watch above: %v", ev[0])
	}
}

func (s *suite) compactKeeps(t *testing.T) {
	want := map[string]string{}
	var last int64
	for i := range 50 {
		key := fmt.Sprintf("/k/%02d", i)
		last = s.mustCreate(t, key, "old")
		switch i % 3 {
		case 0:
			last = s.mustUpdate(t, key, "new", last)
			want[key] = "new"
		case 1:
			last = s.mustDelete(t, key, last)
		default:
			want[key] = "old"
		}
	}
	s.compact(t, last)
	last = s.mustCreate(t, "/k/01", "again")
	want["/k/01"] = "again"
	s.compact(t, last)
	r := s.get(t, "/k/", clientv3.WithRange("/k0"))
	got := map[string]string{}
	for _, kv := range r.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || r.Header.Revision != last {
		t.Fatalf("at %d: %v", r.Header.Revision, got)
	}
}

func (s *suite) compactErrors(t *testing.T) {
	one := s.mustCreate(t, "/a", "1")
	s.mustUpdate(t, "/a", "2", one)
	if _, err := s.c.Compact(s.ctx, one+1000); !errors.Is(err, rpctypes.ErrFutureRev) {
		t.Fatalf("a revision to come: %v", err)
	}
	s.compact(t, one)
	if _, err := s.c.Compact(s.ctx, one); !errors.Is(err, rpctypes.ErrCompacted) {
		t.Fatalf("twice: %v", err)
	}
}

// compactKey makes the transaction with which API servers elect the one that compacts.
func (s *suite) compactKey(t *testing.T) {
	turn := func(version int64, value string) (bool, int64, string) {
		r, err := s.c.Txn(s.ctx).If(clientv3.Compare(clientv3.Version("compact_rev_key"), "=", version)).
			Then(clientv3.OpPut("compact_rev_key", value)).Else(clientv3.OpGet("compact_rev_key")).Commit()
		if err != nil {
			t.Fatal(err)
		}
		if r.Succeeded {
			return true, version + 1, value
		}
		kv := r.Responses[0].GetResponseRange().Kvs[0]
		return false, kv.Version, string(kv.Value)
	}
	if ok, _, _ := turn(0, "10"); !ok {
		t.Fatal("the first turn was refused")
	}
	if ok, v, value := turn(0, "11"); ok || v != 1 || value != "10" {
		t.Fatalf("a late turn: %v, version %d, %q", ok, v, value)
	}
	if ok, _, _ := turn(1, "12"); !ok {
		t.Fatal("the second turn was refused")
	}
	if r := s.get(t, "compact_rev_key"); len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "12" || r.Kvs[0].Version != 2 {
		t.Fatalf("the key: %v", r.Kvs)
	}
}

func (s *suite) grant(t *testing.T, seconds int64) clientv3.OpOption {
	t.Helper()
	l, err := s.c.Grant(s.ctx, seconds)
	if err != nil {
		t.Fatal(err)
	}
	return clientv3.WithLease(l.ID)
}

func (s *suite) lease(t *testing.T) {
	w := s.watch("/l/", clientv3.WithRange("/l0"))
	<-w
	begun := time.Now()
	rev := s.mustCreate(t, "/l/short", "x", s.grant(t, 1))
	s.mustCreate(t, "/l/long", "x", s.grant(t, 3600))
	s.mustCreate(t, "/l/none", "x")
	ev := s.events(t, w, 4)
	if e := ev[3]; e.Type != mvccpb.DELETE || string(e.Kv.Key) != "/l/short" || e.PrevKv == nil ||
		e.PrevKv.ModRevision != rev {
		t.Fatalf("event %v", ev[3])
	}
	if took := time.Since(begun); took < 900*time.Millisecond {
		t.Fatalf("expired after %v", took)
	}
	if r := s.get(t, "/l/", clientv3.WithRange("/l0")); len(r.Kvs) != 2 {
		t.Fatalf("left: %v", r.Kvs)
	}
}

func (s *suite) leaseRenewed(t *testing.T) {
	rev := s.mustCreate(t, "/l/a", "x", s.grant(t, 1))
	s.mustUpdate(t, "/l/a", "kept", rev, s.grant(t, 3600))
	s.mustCreate(t, "/l/b", "x", s.grant(t, 1))
	w := s.watch("/l/", clientv3.WithRange("/l0"))
	ev := s.events(t, w, 1) // b expires, whose lease began after a's first one
	if string(ev[0].Kv.Key) != "/l/b" || len(s.get(t, "/l/a").Kvs) != 1 {
		t.Fatalf("event %v", ev[0])
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

func (s *suite) race(t *testing.T) {
	for round := range 20 {
		var wg sync.WaitGroup
		won := make(chan int, 16)
		for i := range 16 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				rev, err := Create(s.ctx, s.c, fmt.Sprintf("/r/%d", round), fmt.Sprint(i))
				if err != nil {
					t.Error(err)
				}
				if rev > 0 {
					won <- i
				}
			}()
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d won", len(won))
		}
		if got := string(s.get(t, fmt.Sprintf("/r/%d", round)).Kvs[0].Value); got != fmt.Sprint(<-won) {
			t.Fatalf("stored %s", got)
		}
	}
}

func (s *suite) dense(t *testing.T) {
	last := s.get(t, "/").Header.Revision
	for i := range 30 {
		_, _ = Create(s.ctx, s.c, "/d/0", "taken") // only the first one changes anything
		rev := s.mustCreate(t, fmt.Sprintf("/d/%d", i+1), "x")
		if i > 0 && rev != last+1 {
			t.Fatalf("%d after %d", rev, last)
		}
		last = rev
	}
}
