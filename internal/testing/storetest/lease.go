package storetest

import (
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

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
