package sqlite

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

func openAt(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler), synchronous: "OFF"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestExportImportKeepsRevisions(t *testing.T) {
	from := openAt(t, filepath.Join(t.TempDir(), "a"))
	for i := range 2*exportPage + 7 {
		key := fmt.Sprintf("/k/%05d", i)
		rev, err := from.Create(t.Context(), key, []byte(key), int64(i%3*3600))
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 1:
			if _, _, _, err = from.Update(t.Context(), key, []byte("new"), rev, 0); err != nil {
				t.Fatal(err)
			}
		case 2:
			if _, _, _, err = from.Delete(t.Context(), key, rev); err != nil {
				t.Fatal(err)
			}
		}
	}
	var kvs []*mvccpb.KeyValue
	rev := from.current.Load()
	err := from.Export(t.Context(), rev, func(kv *mvccpb.KeyValue) error {
		if len(kvs) == 10 { // what is written meanwhile does not appear
			if _, err := from.Create(t.Context(), "/k/99999", nil, 0); err != nil {
				return err
			}
		}
		kvs = append(kvs, kv)
		return nil
	})
	if err != nil || rev != from.current.Load()-1 || len(kvs) != 1505 {
		t.Fatalf("revision %d, %d keys, %v", rev, len(kvs), err)
	}

	dir := filepath.Join(t.TempDir(), "b")
	put := func(put func(*mvccpb.KeyValue) error) error {
		for _, kv := range kvs {
			if err := put(kv); err != nil {
				return err
			}
		}
		// etcd lets keys share a revision.
		return put(&mvccpb.KeyValue{Key: []byte("/z"), Value: []byte("z"), CreateRevision: 5,
			ModRevision: kvs[0].ModRevision, Version: 2})
	}
	if err := Import(t.Context(), dir, Imported{Floor: 10}, put); err == nil {
		t.Fatal("accepted a revision above the floor")
	}
	if err := Import(t.Context(), dir, Imported{Floor: rev + 1000, Epoch: 77}, put); err != nil {
		t.Fatal(err)
	}
	if err := Import(t.Context(), dir, Imported{Floor: rev + 1000}, put); err == nil {
		t.Fatal("imported over a datastore")
	}
	to := openAt(t, dir)
	if to.Epoch() != 78 {
		t.Fatalf("epoch %d", to.Epoch())
	}
	i := 0
	if err := to.Export(t.Context(), to.current.Load(), func(kv *mvccpb.KeyValue) error {
		if i < len(kvs) && kv.String() != kvs[i].String() {
			t.Errorf("%v became %v", kvs[i], kv)
		}
		i++
		return nil
	}); err != nil || i != len(kvs)+1 {
		t.Fatalf("%d keys, %v", i, err)
	}
	if _, _, err := to.Get(t.Context(), "/k/00000", rev, false); err != server.ErrCompacted {
		t.Fatalf("read at an old revision: %v", err)
	}
	if next, err := to.Create(t.Context(), "/new", nil, 0); err != nil || next != rev+1002 {
		t.Fatalf("next revision %d, %v", next, err)
	}
}
