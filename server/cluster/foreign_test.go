package cluster

import (
	"context"
	"errors"
	"net"
	"net/url"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/cluster/sharedfiles"
)

// withKine calls f with a client of an empty database that kine's server serves.
func withKine(t *testing.T, f func(c *clientv3.Client)) {
	t.Helper()
	withDatastore(t, func(st datastore.Store) error {
		c, err := datastore.Client(t.Context(), st)
		if err != nil {
			return err
		}
		defer c.Close()
		f(c)
		return nil
	})
}

// withEtcd calls f with a client of an empty etcd.
func withEtcd(t *testing.T, f func(c *clientv3.Client)) {
	t.Helper()
	free := func() []url.URL {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return []url.URL{{Scheme: "http", Host: l.Addr().String()}}
	}
	cfg := embed.NewConfig()
	cfg.Dir = t.TempDir()
	cfg.ListenPeerUrls, cfg.ListenClientUrls = free(), free()
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = cfg.ListenPeerUrls, cfg.ListenClientUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	<-e.Server.ReadyNotify()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{cfg.ListenClientUrls[0].String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f(c)
}

// TestClaimRefusesOtherDistributions claims datastores that hold what other distributions write, and looks for changes.
func TestClaimRefusesOtherDistributions(t *testing.T) {
	for _, c := range []struct {
		name string
		keys []string
		want error
	}{
		{"k3s", []string{"/bootstrap/2f7e3c", "/registry/health", "/registry/namespaces/kube-system"}, errK3s},
		{"k3s before its first object", []string{"/bootstrap/2f7e3c"}, errK3s},
		{"kubeadm", []string{"/registry/namespaces/kube-system", "/registry/pods/default/a"}, errNotUmiak},
		{"empty but for what kine writes", []string{"/registry/health", "compact_rev_key"}, nil},
		{"another program's keys in the same etcd", []string{"/bootstrap", "/config/x"}, nil},
	} {
		test := func(t *testing.T, client *clientv3.Client) {
			var revision int64
			for _, k := range c.keys {
				// As the API server writes: a database behind kine takes nothing else.
				r, err := client.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(k), "=", 0)).
					Then(clientv3.OpPut(k, "x")).Commit()
				if err != nil || !r.Succeeded {
					t.Fatalf("write %s: %v", k, err)
				}
				revision = r.Header.Revision
			}
			if err := refuseForeign(t.Context(), client, true); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if c.want == nil {
				return
			}
			s := oneOfSeveral(t, "s1", layout.Dirs{Data: t.TempDir()}, nil)
			if err := s.Record.Claim(t.Context(), client); !errors.Is(err, c.want) {
				t.Errorf("claim: %v, want %v", err, c.want)
			}
			r, err := client.Get(t.Context(), sharedfiles.Key)
			if err != nil || r.Header.Revision != revision || len(r.Kvs) != 0 {
				t.Errorf("the datastore was changed: revision %d, was %d; %v", r.Header.Revision, revision, err)
			}
		}
		t.Run(c.name+" in a database", func(t *testing.T) { withKine(t, func(cl *clientv3.Client) { test(t, cl) }) })
		t.Run(c.name+" in etcd", func(t *testing.T) { withEtcd(t, func(cl *clientv3.Client) { test(t, cl) }) })
	}
}

// TestOwnDatastoreIsNotForeign: the keys of SQLite are copied into etcd with --cluster-init, before there is a record.
func TestOwnDatastoreIsNotForeign(t *testing.T) {
	withKine(t, func(c *clientv3.Client) {
		_, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/registry/namespaces/default"), "=", 0)).
			Then(clientv3.OpPut("/registry/namespaces/default", "x")).Commit()
		if err = errors.Join(err, refuseForeign(t.Context(), c, false)); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := refuseForeign(ctx, c, false); err == nil {
			t.Error("a datastore that does not answer is not refused")
		}
	})
}
