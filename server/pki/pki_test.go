package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/internal/layout"
)

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) set(t time.Time) { c.mu.Lock(); defer c.mu.Unlock(); c.t = t }

var today = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func ensure(t *testing.T, dir string, c *clock) *PKI {
	t.Helper()
	p, err := Ensure(Config{Dir: dir, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func serving(p *PKI) Leaf {
	return Leaf{
		Name: "s", CA: ServerCA, CertFile: p.File("s.crt"), KeyFile: p.File("s.key"), CommonName: "server",
		Server:   true,
		DNSNames: []string{"umiak.test"}, IPs: []string{"192.0.2.1", "2001:db8::1"},
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func cert(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	c, err := parseCert([]byte(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAuthoritiesShareNothingAndStayTheSame(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: today}
	p := ensure(t, dir, c)
	names := []CA{ServerCA, ClientCA, RequestHeaderCA, EtcdCA}
	before := map[string]string{}
	for _, n := range names {
		ca := cert(t, p.CACert(n))
		if y := ca.NotAfter.Year(); y != 2037 && y != 2036 {
			t.Errorf("%s ends in %d", n, y)
		}
		for _, other := range names {
			err := ca.CheckSignatureFrom(cert(t, p.CACert(other)))
			if (err == nil) != (n == other) {
				t.Errorf("%s signed by %s: %v", n, other, err)
			}
		}
	}
	if err := p.Add(serving(p)); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		before[f] = read(t, f)
		fi, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(f, ".key") && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, fi.Mode())
		}
	}
	if len(before) != 3*4+2+2 {
		t.Errorf("got %d files: %v", len(before), files)
	}
	q := ensure(t, dir, c)
	if err := q.Add(serving(q)); err != nil {
		t.Fatal(err)
	}
	for f, was := range before {
		if read(t, f) != was {
			t.Errorf("%s has changed", f)
		}
	}
}

func TestLeafIsTrustedForItsNamesAndNothingElse(t *testing.T) {
	p := ensure(t, t.TempDir(), &clock{t: today})
	if err := p.Add(serving(p)); err != nil {
		t.Fatal(err)
	}
	leaf := cert(t, p.File("s.crt"))
	verify := func(ca CA, name string, usage x509.ExtKeyUsage) error {
		roots := x509.NewCertPool()
		roots.AddCert(cert(t, p.CACert(ca)))
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: today,
			KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for _, name := range []string{"umiak.test", "192.0.2.1", "2001:db8::1"} {
		if err := verify(ServerCA, name, x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if verify(ServerCA, "other.test", x509.ExtKeyUsageServerAuth) == nil {
		t.Error("trusted for a name that is not its own")
	}
	if verify(ClientCA, "umiak.test", x509.ExtKeyUsageServerAuth) == nil {
		t.Error("trusted by another CA")
	}
	if verify(ServerCA, "", x509.ExtKeyUsageClientAuth) == nil {
		t.Error("trusted as a client")
	}
}

func TestLeafFollowsItsDescription(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: today}
	p := ensure(t, dir, c)
	l := serving(p)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	serial, key := cert(t, l.CertFile).SerialNumber, read(t, l.KeyFile)
	l.IPs = append(l.IPs, "192.0.2.7")
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	now := cert(t, l.CertFile)
	if now.SerialNumber.Cmp(serial) == 0 || len(now.IPAddresses) != 3 {
		t.Errorf("not issued anew: %v", now.IPAddresses)
	}
	if read(t, l.KeyFile) != key {
		t.Error("the key has changed, so a reader may find a pair that does not match")
	}
	if n := len(p.Certificates()); n != 4+1 {
		t.Errorf("%d certificates in status", n)
	}
}

func TestHalfWrittenFolders(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(p *PKI) error
		ok     bool
	}{
		{"CA key without certificate", func(p *PKI) error { return os.Remove(p.CACert(ServerCA)) }, true},
		{"leaf certificate gone", func(p *PKI) error { return os.Remove(p.File("s.crt")) }, true},
		{"leaf key gone", func(p *PKI) error { return os.Remove(p.File("s.key")) }, true},
		{"leaf key is rubbish", func(p *PKI) error { return os.WriteFile(p.File("s.key"), []byte("x"), 0o600) }, true},
		{"leaf certificate is empty", func(p *PKI) error { return os.WriteFile(p.File("s.crt"), nil, 0o600) }, true},
		{"ServiceAccount public key gone", func(p *PKI) error { return os.Remove(p.ServiceAccountPublicKey()) }, true},
		{"CA certificate without key", func(p *PKI) error { return os.Remove(p.CAKey(ClientCA)) }, false},
		{"CA key is rubbish", func(p *PKI) error { return os.WriteFile(p.CAKey(ClientCA), []byte("x"), 0o600) }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{t: today}
			p := ensure(t, dir, c)
			if err := p.Add(serving(p)); err != nil {
				t.Fatal(err)
			}
			if err := tc.damage(p); err != nil {
				t.Fatal(err)
			}
			q, err := Ensure(Config{Dir: dir, Now: c.now})
			if err == nil {
				err = q.Add(serving(q))
			}
			if (err == nil) != tc.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "EC PRIVATE") {
				t.Errorf("the error tells a key: %v", err)
			}
			if tc.ok {
				if _, err := tls.LoadX509KeyPair(q.File("s.crt"), q.File("s.key")); err != nil {
					t.Error(err)
				}
				if err := cert(t, q.File("s.crt")).CheckSignatureFrom(cert(t, q.CACert(ServerCA))); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestWrongClocks(t *testing.T) {
	dir := t.TempDir()
	c := &clock{t: time.Date(1970, 1, 1, 0, 5, 0, 0, time.UTC)} // a board without a battery
	p := ensure(t, dir, c)
	if err := p.Add(serving(p)); err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{c.now(), Released.Add(24 * time.Hour)} {
		roots := x509.NewCertPool()
		roots.AddCert(cert(t, p.CACert(ServerCA)))
		if _, err := cert(t, p.File("s.crt")).Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at}); err != nil {
			t.Errorf("at %v: %v", at, err)
		}
	}
	// The clock is set, years later: the leaf has ended and is renewed, the CA has not.
	c.set(Released.AddDate(3, 0, 0))
	p.renewDue()
	if end := cert(t, p.File("s.crt")).NotAfter; end.Before(c.now()) {
		t.Errorf("ends %v", end)
	}
	// It was ahead: what was issued then lives too long.
	c.set(today)
	p.renewDue()
	if end := cert(t, p.File("s.crt")).NotAfter; end.After(today.Add(91 * 24 * time.Hour)) {
		t.Errorf("ends %v", end)
	}
	// Far ahead: refused, and the reason is told.
	c.set(today.AddDate(40, 0, 0))
	if _, err := Ensure(Config{Dir: dir, Now: c.now}); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("got %v", err)
	}
}

func TestRenewsWhileServing(t *testing.T) {
	p, err := Ensure(Config{Dir: t.TempDir(), LeafLifetime: 1500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	renewed := make(chan struct{}, 16)
	l := serving(p)
	l.Renewed = func() error { renewed <- struct{}{}; return nil }
	ctx, cancel := context.WithCancel(t.Context())
	done, ready := make(chan error, 1), make(chan struct{})
	go func() { done <- p.Run(ctx, func() { close(ready) }) }()
	<-ready
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0",
		&tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
			return &c, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) { _ = c.(*tls.Conn).Handshake(); _ = c.Close() }(c)
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.CAPEM(ServerCA))
	first := cert(t, l.CertFile)
	for range 3 {
		<-renewed
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "umiak.test"})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	if !cert(t, l.CertFile).NotAfter.After(first.NotAfter) {
		t.Error("not renewed")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestKubeconfigEmbedsOrNames(t *testing.T) {
	p := ensure(t, t.TempDir(), &clock{t: today})
	l := serving(p)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	k := Kubeconfig{Server: "https://127.0.0.1:6443", CAFile: p.CACert(ServerCA), CertFile: l.CertFile,
		KeyFile: l.KeyFile}
	for _, embed := range []bool{false, true} {
		k.Embed = embed
		file := p.File("kubeconfig")
		if err := k.Write(file, 0o640); err != nil {
			t.Fatal(err)
		}
		if s := read(t, file); strings.Contains(s, l.KeyFile) == embed ||
			strings.Contains(s, "client-key-data") != embed ||
			strings.Contains(s, "certificate-authority-data") != embed {
			t.Errorf("embed %v: %s", embed, s)
		}
		if fi, _ := os.Stat(file); fi.Mode().Perm() != 0o640 {
			t.Error(fi.Mode())
		}
	}
}

// TestCopyOfTheAdministratorsKubeconfig: the copy has its own mode, group and names, and the original does not.
func TestCopyOfTheAdministratorsKubeconfig(t *testing.T) {
	dirs := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	p := ensure(t, dirs.ServerPKI(), &clock{t: today})
	if err := os.MkdirAll(dirs.ServerKubeconfigs(), 0o700); err != nil {
		t.Fatal(err)
	}
	group := os.Getegid()
	if os.Geteuid() == 0 {
		group = 4711
	}
	file := filepath.Join(t.TempDir(), "config")
	c := ControlPlane{Dirs: dirs, URL: "https://127.0.0.1:6443", Log: slog.New(slog.DiscardHandler),
		AdminCopy: AdminCopy{File: file, Mode: 0o640, Group: group, Name: "home lab"}}
	for _, l := range c.Leaves(p) {
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := st.Sys().(*syscall.Stat_t); !ok || int(s.Gid) != group || st.Mode().Perm() != 0o640 {
		t.Error(st.Mode(), s.Gid)
	}
	for name, want := range map[string]string{file: "home lab", dirs.AdminKubeconfig(): "umiak"} {
		k, err := clientcmd.LoadFromFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := k.Contexts[k.CurrentContext]
		if k.CurrentContext != want || at.Cluster != want || at.AuthInfo != want || k.Clusters[want] == nil ||
			k.AuthInfos[want] == nil {
			t.Errorf("%s: %+v", name, k)
		}
	}
}

func FuzzParse(f *testing.F) {
	dir := f.TempDir()
	p, err := Ensure(Config{Dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p.CAPEM(ServerCA))
	key, _ := os.ReadFile(p.CAKey(ServerCA))
	f.Add(key)
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if k, err := parseKey(b); err == nil && k == nil {
			panic("no key and no error")
		}
		if c, err := parseCert(b); err == nil && c == nil {
			panic("no certificate and no error")
		}
	})
}
