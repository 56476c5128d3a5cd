package storetest

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

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
