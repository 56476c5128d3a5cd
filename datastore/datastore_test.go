package datastore_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/testing/storetest"
)

// start opens a datastore in dir and serves it until the test ends or stop is called.
func start(t testing.TB, dir string) (_ datastore.Store, stop func()) {
	t.Helper()
	return startWith(t, datastore.Config{Dir: filepath.Join(dir, "db"), Socket: filepath.Join(dir, "d.sock"),
		VolatileSocket: filepath.Join(dir, "v.sock"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
}

func dial(t testing.TB, endpoint string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestDurable(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		s, _ := start(t, t.TempDir())
		return dial(t, s.Endpoint())
	})
}

func TestVolatile(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		s, _ := start(t, t.TempDir())
		return dial(t, s.VolatileEndpoint())
	})
}
