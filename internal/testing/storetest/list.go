package storetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

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
