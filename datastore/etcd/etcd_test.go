package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/storetest"
	"github.com/umiak-io/umiak/server/pki"
)

// cluster creates members with certificates of one CA.
type cluster struct {
	t   testing.TB
	dir string
	pki *pki.PKI
	reg prometheus.Registerer
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	var err error
	if c.pki, err = pki.Ensure(pki.Config{Dir: filepath.Join(c.dir, "pki")}); err != nil {
		t.Fatal(err)
	}
	for _, l := range []pki.Leaf{
		{Name: "s", CertFile: c.pki.File("s.crt"), KeyFile: c.pki.File("s.key"), CommonName: "etcd", Server: true,
			DNSNames: []string{etcd.PeerName}},
		{Name: "c", CertFile: c.pki.File("c.crt"), KeyFile: c.pki.File("c.key"), CommonName: "etcd"},
	} {
		l.CA = pki.EtcdCA
		if err := c.pki.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *cluster) config(name string, join ...etcd.Member) etcd.Config {
	return etcd.Config{
		Dir: filepath.Join(c.dir, name), Socket: filepath.Join(c.dir, name+".run", "s"), Name: name,
		Peer: freePort(c.t), Cluster: "test",
		TLS: etcd.TLS{CA: c.pki.CACert(pki.EtcdCA), ServerCert: c.pki.File("s.crt"), ServerKey: c.pki.File("s.key"),
			ClientCert: c.pki.File("c.crt"), ClientKey: c.pki.File("c.key")},
		Join: join, Log: slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		Registerer: c.reg,
	}
}

type member struct {
	*etcd.Server
	cfg     etcd.Config
	stop    func()
	removed bool // the cluster removes it, so Run returns an error
}

// start starts a member and waits until it is ready. It ends with stop or with the test.
func (c *cluster) start(cfg etcd.Config) *member {
	c.t.Helper()
	s, err := etcd.Open(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	m := &member{Server: s, cfg: cfg}
	var once sync.Once
	m.stop = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-done, s.Close()); err != nil && !m.removed {
				c.t.Error(err)
			}
		})
	}
	select {
	case <-up:
	case err := <-done:
		c.t.Fatal(errors.Join(err, s.Close()))
	case <-time.After(time.Minute):
		c.t.Fatalf("%s is not ready: %+v", cfg.Name, s.Status())
	}
	c.t.Cleanup(m.stop)
	return m
}

func dial(t testing.TB, m *member) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{m.Endpoint()}, DialTimeout: 10 * time.Second,
		Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *clientv3.Client {
		c := newCluster(t)
		return dial(t, c.start(c.config("a")))
	}, storetest.WatchFuture)
}

func TestThreeMembers(t *testing.T) {
	c := newCluster(t)
	reg := prometheus.NewRegistry()
	c.reg = reg
	a := c.start(c.config("a"))
	c.reg = nil
	// As when the member restarts with new certificates.
	a.stop()
	a = c.start(a.cfg)
	if f, err := reg.Gather(); err != nil || len(f) < 20 {
		t.Errorf("%d families of metrics, %v", len(f), err)
	}
	rev, err := storetest.Create(t.Context(), dial(t, a), "/k", "v")
	if err != nil {
		t.Fatal(err)
	}
	join := func(name string, to *member) *member {
		cfg := c.config(name)
		var members []etcd.Member
		eventually.Nil(t, "the cluster", func() (err error) {
			members, err = to.AddLearner(t.Context(), name, cfg.Peer)
			return err
		})
		if again, err := to.AddLearner(t.Context(), name, cfg.Peer); err != nil || len(again) != len(members) {
			t.Fatalf("added twice: %v, %v", again, err)
		}
		cfg.Join = members
		return c.start(cfg)
	}
	b := join("b", a)
	d := join("d", b)
	eventually.Nil(t, "the cluster", func() error {
		for _, m := range d.Members() {
			if m.Learner || m.Name == "" {
				return fmt.Errorf("members %+v", d.Members())
			}
		}
		return nil
	})
	if n := len(d.Members()); n != 3 {
		t.Fatalf("%d members", n)
	}
	if st := d.Status(); !st.HasLeader || st.Learner || len(st.Members) != 3 {
		t.Errorf("status %+v", st)
	}

	cd := dial(t, d)
	if r, err := cd.Get(t.Context(), "/k"); err != nil || len(r.Kvs) != 1 || r.Kvs[0].ModRevision != rev {
		t.Fatalf("%v, %v", r, err)
	}

	// A member that is taken for lost by mistake is connected again.
	lost := func() bool {
		return slices.ContainsFunc(d.Members(), func(m etcd.Member) bool { return m.Name == "b" && m.Unreachable })
	}
	eventually.Nil(t, "the cluster", func() error {
		if lost() {
			return fmt.Errorf("members %+v", d.Members())
		}
		return nil
	})
	for _, m := range d.Members() {
		if m.Name == "b" {
			d.MarkLost(m.ID)
		}
	}
	if !lost() {
		t.Error("b is not taken for lost: this tests nothing")
	}
	eventually.Nil(t, "the cluster", func() error {
		if lost() {
			return fmt.Errorf("members %+v", d.Members())
		}
		return nil
	})

	// One of three is lost: writes continue.
	a.stop()
	eventually.Nil(t, "the cluster", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := storetest.Create(ctx, cd, "/after", "x")
		return err
	})
	// It comes back at another address.
	cfg := a.cfg
	cfg.Peer = freePort(t)
	a = c.start(cfg)
	eventually.Nil(t, "the cluster", func() error {
		for _, m := range d.Members() {
			if m.Name == "a" && m.Peer == cfg.Peer {
				return nil
			}
		}
		return fmt.Errorf("members %+v", d.Members())
	})

	// One loses its directory and joins again under its name.
	b.stop()
	if err := os.RemoveAll(b.cfg.Dir); err != nil {
		t.Fatal(err)
	}
	b = join("b", d)

	// One is removed.
	a.removed = true
	eventually.Nil(t, "the cluster", func() error { return b.RemoveMember(t.Context(), "a") })
	if err := b.RemoveMember(t.Context(), "nobody"); err != nil {
		t.Errorf("an unknown member: %v", err)
	}

	// A majority is lost: the remaining member is reset and goes on alone, once.
	b.stop()
	d.stop()
	cfg = d.cfg
	cfg.Reset = true
	d = c.start(cfg)
	if n := len(d.Members()); n != 1 {
		t.Fatalf("%d members after the reset", n)
	}
	if r, err := dial(t, d).Get(t.Context(), "/k"); err != nil || len(r.Kvs) != 1 {
		t.Fatalf("after the reset: %v, %v", r, err)
	}
	if _, err := storetest.Create(t.Context(), dial(t, d), "/alone", "x"); err != nil {
		t.Fatal(err)
	}
	d.stop()
	if _, err := etcd.Open(cfg); !errors.Is(err, etcd.ErrResetTwice) {
		t.Fatalf("reset twice: %v", err)
	}
	d = c.start(d.config())
	d.stop()
}

// config returns the member's configuration without a reset.
func (m *member) config() etcd.Config {
	c := m.cfg
	c.Reset = false
	return c
}

func TestStrangersAreNotPeers(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	a := c.start(c.config("a"))
	cfg := c.config("b")
	members, err := a.AddLearner(t.Context(), "b", cfg.Peer)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Join, cfg.TLS = members, other.config("x").TLS
	var log bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	if s, err := etcd.Open(cfg); err == nil {
		_ = s.Close()
		t.Fatal("joined with certificates of another cluster")
	} else if !strings.Contains(log.String(), "certificate") && !strings.Contains(err.Error(), "certificate") {
		t.Logf("neither error nor log names the certificate: %v\n%s", err, log.String())
	}
}

func TestSeedKeepsRevisionsAndLeases(t *testing.T) {
	c := newCluster(t)
	cfg := c.config("a")
	const n, floor = 3000, 1 << 36
	want := func(i int) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: fmt.Appendf(nil, "/k/%05d", i), Value: fmt.Append(nil, i),
			CreateRevision: int64(i + 2), ModRevision: int64(3*i + 2), Version: int64(i%7 + 1),
			Lease: int64(i%3) * 1800}
	}
	keys := func(limit int) func(put func(*mvccpb.KeyValue) error) error {
		return func(put func(*mvccpb.KeyValue) error) error {
			for i := range n {
				if i == limit {
					return errors.New("interrupted")
				}
				if err := put(want(i)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if err := etcd.Seed(t.Context(), cfg, floor, keys(100)); err == nil || etcd.Exists(cfg.Dir) {
		t.Fatalf("interrupted: %v", err)
	}
	if err := etcd.Seed(t.Context(), cfg, 10, keys(n)); err == nil {
		t.Fatal("accepted a floor below a key's revision")
	}
	begun := time.Now()
	if err := etcd.Seed(t.Context(), cfg, floor, keys(n)); err != nil {
		t.Fatal(err)
	}
	t.Logf("seeded in %v", time.Since(begun))
	if err := etcd.Seed(t.Context(), cfg, floor, keys(n)); err == nil {
		t.Fatal("seeded twice")
	}
	check := func(m *member) {
		t.Helper()
		i := 0
		if err := m.Export(t.Context(), m.Revision(), func(kv *mvccpb.KeyValue) error {
			if i < n && kv.String() != want(i).String() {
				t.Errorf("%v became %v", want(i), kv)
			}
			if i >= n && string(kv.Key) != "/new" {
				t.Errorf("there is %v", kv)
			}
			i++
			return nil
		}); err != nil || i < n {
			t.Fatalf("%d keys, %v", i, err)
		}
	}
	a := c.start(cfg)
	if a.Revision() != floor {
		t.Fatalf("revision %d", a.Revision())
	}
	check(a)
	cl := dial(t, a)
	if l, err := cl.Leases(t.Context()); err != nil || len(l.Leases) != 2 {
		t.Fatalf("%v, %v", l, err)
	}
	if r, ok := <-cl.Watch(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithRev(9000)); !ok ||
		!errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Fatalf("a watch from before: %v, %v", ok, r.Err())
	}
	w := cl.Watch(t.Context(), "/new", clientv3.WithRev(floor+1))
	if rev, err := storetest.Create(t.Context(), cl, "/new", "x"); err != nil || rev != floor+1 {
		t.Fatalf("%d, %v", rev, err)
	}
	if r := <-w; len(r.Events) != 1 {
		t.Fatalf("%v", r)
	}
	if next, _, err := storetest.Update(t.Context(), cl, "/k/00000", "changed", 2); err != nil || next != floor+2 {
		t.Fatalf("%d, %v", next, err)
	}
	if next, _, err := storetest.Update(t.Context(), cl, "/k/00000", "0", next0(t, cl)); err != nil || next != floor+3 {
		t.Fatalf("%d, %v", next, err)
	}

	// Seeded keys are in no raft log entry; another member must get them too.
	bc := c.config("b")
	members, err := a.AddLearner(t.Context(), "b", bc.Peer)
	if err != nil {
		t.Fatal(err)
	}
	bc.Join = members
	b := c.start(bc)
	eventually.Nil(t, "the cluster", func() error {
		if b.Revision() != a.Revision() {
			return fmt.Errorf("revision %d of %d", b.Revision(), a.Revision())
		}
		return nil
	})
	if r, err := dial(t, b).Get(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil ||
		r.Count != n {
		t.Fatalf("the other member has %v, %v", r, err)
	}
	b.stop()
}

func next0(t *testing.T, c *clientv3.Client) int64 {
	r, err := c.Get(t.Context(), "/k/00000")
	if err != nil {
		t.Fatal(err)
	}
	return r.Kvs[0].ModRevision
}

// TestMetricsPort: metrics are served without credentials where the settings ask for it, and a port that is taken does
// not keep the member from starting.
func TestMetricsPort(t *testing.T) {
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := newCluster(t)
	cfg := c.config("one")
	cfg.Metrics = []string{taken.Addr().String(), freePort(t)}
	cfg.Args = []string{"quota-backend-bytes=3221225472"}
	c.start(cfg)
	for path, want := range map[string]string{"/metrics": "etcd_server_quota_backend_bytes 3.221225472e+09",
		"/health": "true"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.Metrics[1]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if _ = resp.Body.Close(); err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %v, %.200s", path, err, body)
		}
	}
}
