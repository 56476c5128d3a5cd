package cluster

import (
	"log/slog"
	"testing"
	"time"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/pki"
	"github.com/umiak-io/umiak/server/storage"
)

// noNodes is a server to which no node is connected.
type noNodes struct{}

func (noNodes) SetAuthorities(string) {}

func (noNodes) Authorities(string) (string, time.Time, bool) { return "", time.Time{}, false }

// oneOfSeveral is a server that shares a database with others. Its files are those below d.
func oneOfSeveral(t *testing.T, name string, d layout.Dirs, st datastore.Store) *Cluster {
	t.Helper()
	p, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Config{
		Name: name, Address: "10.0.0.1:6443", Dirs: d, Shared: joinwire.External, PKI: p, Datastore: storage.Open(st),
		Settings: []joinwire.Setting{{Key: "cluster-domain", Value: "cluster.local"}},
		Tunnels:  noNodes{}, TakenOver: func() {}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withDatastore calls f with an empty datastore that serves.
func withDatastore(t *testing.T, f func(datastore.Store) error) {
	t.Helper()
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	cfg := datastore.Config{Dir: d.DB(), Socket: d.DatastoreSocket(), VolatileSocket: d.VolatileSocket(),
		Log: slog.New(slog.DiscardHandler)}
	if err := storage.Once(t.Context(), cfg, f); err != nil {
		t.Fatal(err)
	}
}
