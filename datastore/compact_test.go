package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/k3s-io/kine/pkg/server"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/utils/clock"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestCompaction checks that both stores of one server drop old history, that kube-apiserver's compactor sees the
// compact revision, and that nothing is written while nothing changes.
func TestCompaction(t *testing.T) {
	dir := t.TempDir()
	if len(dir) > 80 {
		t.Fatalf("%s is too long for a socket", dir)
	}
	st, err := Open(t.Context(), Config{Dir: dir, Socket: dir + "/d", VolatileSocket: dir + "/v",
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(ctx, func() { close(up) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-up
	s := st.(*store)
	for name, c := range map[string]struct {
		store    revisioned
		endpoint string
	}{"sqlite": {s.durable, s.Endpoint()}, "memory": {s.volatile, s.VolatileEndpoint()}} {
		t.Run(name, func(t *testing.T) {
			client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.endpoint}, DialTimeout: 10 * time.Second,
				Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			upstream := etcd3.NewCompactor(client, apiServerInterval, clock.RealClock{}, nil)
			defer upstream.Stop()
			k := newCompactor(name, c.store, slog.New(slog.DiscardHandler))
			write := func(round int) (last int64) {
				for i := range 20 {
					var err error
					if last, err = c.store.Create(ctx, fmt.Sprint("/k/", round, "/", i), nil, 0); err != nil {
						t.Fatal(err)
					}
				}
				return last
			}
			turn := func() {
				t.Helper()
				if err := k.turn(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for round := range 3 {
				last := write(round)
				turn() // remembers the newest revision
				turn()
				if _, compact := c.store.Revisions(); compact < last {
					t.Fatalf("round %d: compacted to %d, want at least %d", round, compact, last)
				}
				if _, err := client.Get(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(last-1)); err == nil ||
					!strings.Contains(err.Error(), "compacted") {
					t.Errorf("round %d: a compacted revision is answered with %v", round, err)
				}
				eventually.Nil(t, "the API server to have the compacted revision", func() error {
					if got := upstream.CompactRevision(); got < last {
						return fmt.Errorf("round %d: it has %d, want at least %d", round, got, last)
					}
					return nil
				})
			}
			before, _ := c.store.Revisions()
			for range 5 {
				turn()
			}
			if after, _ := c.store.Revisions(); after > before {
				t.Errorf("an idle store went from revision %d to %d", before, after)
			}
			if _, _, err := c.store.Get(ctx, "/k/0/0", before, false); errors.Is(err, server.ErrCompacted) {
				t.Error("the newest revision is compacted")
			}
		})
	}
}

// apiServerInterval is the compaction interval of kube-apiserver's compactor: longer than the test.
const apiServerInterval = 24 * time.Hour
