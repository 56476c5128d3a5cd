package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/testing/storetest"
	"github.com/umiak-io/umiak/server/pki"
)

// startWith opens a datastore and serves it until the test ends or stop is called.
func startWith(t testing.TB, cfg datastore.Config) (_ datastore.Store, stop func()) {
	t.Helper()
	s, err := datastore.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return s, stop
}

func etcdConfig(t testing.TB, dir string) etcd.Config {
	t.Helper()
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(dir, "pki")})
	if err != nil {
		t.Fatal(err)
	}
	for name, server := range map[string]bool{"s": true, "c": false} {
		l := pki.Leaf{Name: name, CA: pki.EtcdCA, CertFile: p.File(name + ".crt"), KeyFile: p.File(name + ".key"),
			CommonName: "etcd", Server: server}
		if server {
			l.DNSNames = []string{etcd.PeerName}
		}
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return etcd.Config{Name: "m1", Peer: l.Addr().String(), Cluster: "t", TLS: etcd.TLS{CA: p.CACert(pki.EtcdCA),
		ServerCert: p.File("s.crt"), ServerKey: p.File("s.key"), ClientCert: p.File("c.crt"),
		ClientKey: p.File("c.key")}}
}

func TestSQLiteMovesIntoEtcd(t *testing.T) {
	dir := t.TempDir()
	cfg := datastore.Config{Dir: filepath.Join(dir, "db"), Socket: filepath.Join(dir, "d.sock"),
		VolatileSocket: filepath.Join(dir, "v.sock"), Log: slog.New(slog.NewTextHandler(t.Output(),
			&slog.HandlerOptions{Level: slog.LevelInfo})), Etcd: etcdConfig(t, dir)}
	from, stop := startWith(t, cfg)
	c := dial(t, from.Endpoint())
	const n = 2500
	done := make(chan error, n)
	lease, err := c.Grant(t.Context(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		go func() {
			key := fmt.Sprintf("/registry/x/%05d", i)
			var opts []clientv3.OpOption
			if i%10 == 0 {
				opts = append(opts, clientv3.WithLease(lease.ID))
			}
			rev, err := storetest.Create(t.Context(), c, key, "1", opts...)
			if err == nil && i%3 == 0 {
				_, _, err = storetest.Update(t.Context(), c, key, "2", rev, opts...)
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	lease1 := dial(t, from.VolatileEndpoint())
	vrev, err := storetest.Create(t.Context(), lease1, "/registry/leases/a", "x")
	if err != nil {
		t.Fatal(err)
	}
	all := func(s datastore.Store) map[string]string {
		t.Helper()
		st, err := s.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		if err := s.Export(t.Context(), st.Revision,
			func(kv *mvccpb.KeyValue) error { out[string(kv.Key)] = kv.String(); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := all(from)
	st, _ := from.State(t.Context())
	stop()

	cfg.ClusterInit = true
	// An interrupted start leaves the old state.
	broken, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := datastore.Open(broken, cfg); err == nil {
		t.Fatal("moved although the context had ended")
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "etcd.new", "out", "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	to, stop := startWith(t, cfg)
	if got := all(to); len(got) != len(want) {
		t.Fatalf("%d keys became %d", len(want), len(got))
	} else {
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%s became %s", v, got[k])
			}
		}
	}
	c = dial(t, to.Endpoint())
	for _, rev := range []int64{st.Revision, vrev} {
		if r, ok := <-c.Watch(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithRev(rev)); !ok ||
			!errors.Is(r.Err(), rpctypes.ErrCompacted) {
			t.Fatalf("a watch from %d: %v, %v", rev, ok, r.Err())
		}
	}
	if to.VolatileEndpoint() != "" {
		t.Error("leases are in memory")
	}
	// A snapshot of etcd is restored as SQLite.
	e, err := snapshot.Save{Dir: filepath.Join(dir, "snapshots"), Name: "t", Server: dir, Source: to, Node: "m1",
		Reason: "on-demand", Now: time.Now()}.Run(t.Context())
	if err != nil || e.Backend != "etcd" || e.Keys != n {
		t.Fatalf("%+v, %v", e, err)
	}
	dirs := layout.Dirs{Data: filepath.Join(dir, "other"), Run: filepath.Join(dir, "other-run")}
	if err := os.Mkdir(dirs.Data, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := snapshot.Restore(t.Context(), e.Path, "", dirs, cfg.Log); err != nil {
		t.Fatal(err)
	}
	back := cfg
	back.Dir, back.ClusterInit, back.Socket, back.VolatileSocket = dirs.DB(), false, filepath.Join(dir, "b.sock"),
		filepath.Join(dir, "bv.sock")
	restored, stopRestored := startWith(t, back)
	if got := all(restored); len(got) != len(want) || got["/registry/x/00000"] != want["/registry/x/00000"] {
		t.Errorf("%d keys became %d; %s became %s", len(want), len(got), want["/registry/x/00000"],
			got["/registry/x/00000"])
	}
	// Leases were in etcd and had its revisions; in memory they must get newer ones.
	if rev, err := storetest.Create(t.Context(), dial(t, restored.VolatileEndpoint()), "/registry/leases/b",
		"x"); err != nil || rev <= e.Revision {
		t.Errorf("revision %d in memory after %d, %v", rev, e.Revision, err)
	}
	stopRestored()
	kept, _ := filepath.Glob(filepath.Join(cfg.Dir, "sqlite-before-etcd-*", "state.db"))
	if len(kept) != 1 {
		t.Errorf("kept %v", kept)
	}
	if s, err := to.Status(t.Context()); err != nil || s.Backend != "etcd" || len(s.Etcd.Members) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	stop()

	// etcd is used again without ClusterInit, and files that an interrupted start left are moved away.
	cfg.ClusterInit = false
	if err := os.WriteFile(filepath.Join(cfg.Dir, "state.db-wal"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	to, _ = startWith(t, cfg)
	if got := all(to); len(got) != len(want) {
		t.Fatalf("%d keys after a restart", len(got))
	}
}

func TestAClusterOfItsOwnDoesNotJoin(t *testing.T) {
	dir := t.TempDir()
	cfg := datastore.Config{Dir: filepath.Join(dir, "db"), Socket: filepath.Join(dir, "d.sock"),
		VolatileSocket: filepath.Join(dir, "v.sock"), Log: slog.New(slog.DiscardHandler), Etcd: etcdConfig(t, dir)}
	_, stop := startWith(t, cfg)
	stop()
	cfg.Etcd.Join = []etcd.Member{{Name: "m1", Peer: cfg.Etcd.Peer}}
	if _, err := datastore.Open(t.Context(), cfg); err == nil {
		t.Fatal("joined")
	}
}
