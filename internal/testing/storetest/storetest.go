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
