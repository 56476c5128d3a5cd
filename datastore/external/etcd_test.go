package external_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/datastore/external"
	"github.com/umiak-io/umiak/internal/testing/storetest"
	"github.com/umiak-io/umiak/server/pki"
)

// foreignEtcd starts an etcd that requires client certificates.
func foreignEtcd(t *testing.T) (endpoint string, tls external.TLS) {
	t.Helper()
	dir := t.TempDir()
	p, err := pki.Ensure(pki.Config{Dir: filepath.Join(dir, "pki")})
	if err != nil {
		t.Fatal(err)
	}
	for name, server := range map[string]bool{"s": true, "c": false} {
		l := pki.Leaf{Name: name, CA: pki.EtcdCA, CertFile: p.File(name + ".crt"), KeyFile: p.File(name + ".key"),
			CommonName: "x", Server: server}
		if server {
			l.IPs, l.DNSNames = []string{"127.0.0.1"}, []string{etcd.PeerName}
		}
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "data")
	client, peer := url.URL{Scheme: "https", Host: freeAddress(t)}, url.URL{Scheme: "http", Host: freeAddress(t)}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ClientTLSInfo = transport.TLSInfo{CertFile: p.File("s.crt"), KeyFile: p.File("s.key"),
		TrustedCAFile: p.CACert(pki.EtcdCA), ClientCertAuth: true}
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return client.String(), external.TLS{CAFile: p.CACert(pki.EtcdCA), CertFile: p.File("c.crt"),
		KeyFile: p.File("c.key")}
}

func TestEtcdIsReachedDirectly(t *testing.T) {
	endpoint, tls := foreignEtcd(t)
	var log bytes.Buffer
	s := open(t, endpoint, tls, &log) // waits until it answers
	if s.Endpoint() != endpoint || s.TLS() != tls {
		t.Errorf("the endpoint is %s, %+v", s.Endpoint(), s.TLS())
	}
	info := transport.TLSInfo{CertFile: tls.CertFile, KeyFile: tls.KeyFile, TrustedCAFile: tls.CAFile}
	tc, err := info.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: tc, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	lease, err := c.Grant(t.Context(), 1800)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1500 {
		if _, err := storetest.Create(t.Context(), c, fmt.Sprintf("/registry/x/%05d", i), "v",
			clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	st, err := s.Status(t.Context())
	if err != nil || st.Kind != "etcd" {
		t.Fatalf("%+v, %v", st, err)
	}
	n := 0
	if err := s.Export(t.Context(), st.Revision, func(kv *mvccpb.KeyValue) error {
		n++
		if kv.Lease != 1800 {
			return fmt.Errorf("%q has a lease of %d s", kv.Key, kv.Lease)
		}
		return nil
	}); err != nil || n != 1500 {
		t.Fatalf("%d keys, %v", n, err)
	}
	if _, err := external.Open(t.Context(), external.Config{Endpoint: "sqlite:///x",
		Log: slog.New(slog.DiscardHandler)}, ""); err == nil {
		t.Error("accepted an endpoint of an unknown kind")
	}
}
