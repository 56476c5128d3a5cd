package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// pool is the roots in a file's content.
func pool(t *testing.T, pem string) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("no roots")
	}
	return p
}

// handshake has a TLS server with the leaf's files and a client with those roots talk.
func handshake(t *testing.T, l Leaf, roots *x509.CertPool) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(l.CertFile, l.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _ = tls.Server(a, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake() }()
	return tls.Client(b, &tls.Config{RootCAs: roots, ServerName: "umiak.test",
		Time: func() time.Time { return today }}).Handshake()
}

func TestRotationKeepsBothSidesTrusted(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: today}
	p := ensure(t, dir, c)
	l := serving(p)
	told := 0
	l.WithCA, l.Renewed = true, func() error { told++; return nil }
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	old := read(t, p.CACert(ServerCA))
	oldPub := read(t, p.ServiceAccountPublicKey())
	if err := p.BeginRotation(nil, ""); err != nil {
		t.Fatal(err)
	}
	bundle := read(t, p.CACert(ServerCA))
	if told != 2 || strings.Count(bundle, "BEGIN") != 2 || !strings.HasSuffix(bundle, old) ||
		string(p.CAPEM(ServerCA)) != bundle {
		t.Fatalf("told %d times, bundle:\n%s", told, bundle)
	}
	fresh := strings.TrimSuffix(bundle, old)
	for name, roots := range map[string]string{"the old root": old, "the new root": fresh, "both": bundle} {
		if err := handshake(t, l, pool(t, roots)); err != nil {
			t.Errorf("who trusts %s: %v", name, err)
		}
	}
	// Joining machines with tokens of before find the old root in the chain.
	if chain := read(t, l.CertFile); !strings.Contains(chain, old) || !strings.Contains(chain, fresh) {
		t.Error("a root is missing in the chain")
	}
	if n := strings.Count(read(t, p.CASigner(ServerCA)), "BEGIN"); n != 1 {
		t.Errorf("%d certificates for the controller manager", n)
	}
	if pub := read(t, p.ServiceAccountPublicKey()); !strings.HasSuffix(pub, oldPub) ||
		strings.Count(pub, "BEGIN") != 2 {
		t.Error("the old ServiceAccount key does not verify any more")
	}
	if err := p.BeginRotation([]string{"server-ca"}, ""); !errors.Is(err, ErrUnderWay) {
		t.Errorf("a second one: %v", err)
	}
	if _, err := p.FinishRotation(nil); !errors.Is(err, ErrNoRestart) {
		t.Errorf("finish without a restart: %v", err)
	}
	// A command that looks is no restart.
	if q, err := Open(Config{Dir: dir, Now: c.now}); err != nil || len(q.Rotations()) != 5 ||
		!q.Rotations()[0].Restarted.IsZero() {
		t.Errorf("%v, %+v", err, q.Rotations())
	}
	p = ensure(t, dir, c)
	if read(t, p.CACert(ServerCA)) != bundle {
		t.Error("a restart changes the bundle")
	}
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	done, err := p.FinishRotation(nil)
	if err != nil || !slices.Equal(done, Rotatable()) || len(p.Rotations()) != 0 {
		t.Fatalf("%v, %v", done, err)
	}
	if read(t, p.CACert(ServerCA)) != fresh {
		t.Error("the old root is still trusted")
	}
	if handshake(t, l, pool(t, old)) == nil || handshake(t, l, pool(t, fresh)) != nil {
		t.Error("after the end only the new root counts")
	}
	if strings.Contains(read(t, l.CertFile), old) || strings.Contains(read(t, p.ServiceAccountPublicKey()), oldPub) {
		t.Error("something old is left")
	}
	if _, err := p.FinishRotation(nil); !errors.Is(err, ErrNotUnderWay) {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*old*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	// And once more, so that nothing depends on the first authority's form.
	if err := p.BeginRotation([]string{"server-ca"}, ""); err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, l, pool(t, fresh)); err != nil {
		t.Error(err)
	}
}

func TestSteadyLeavesChangeAtTheNextStart(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: today}
	p := ensure(t, dir, c)
	l := Leaf{Name: "c", CA: ClientCA, CertFile: p.File("c.crt"), KeyFile: p.File("c.key"), CommonName: "c",
		Steady: true}
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	was := read(t, l.CertFile)
	if err := p.BeginRotation(nil, ""); err != nil {
		t.Fatal(err)
	}
	p.renewDue()
	if read(t, l.CertFile) != was {
		t.Error("changed under its readers")
	}
	p = ensure(t, dir, c)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	if cert(t, l.CertFile).CheckSignatureFrom(cert(t, p.CASigner(ClientCA))) != nil {
		t.Error("a start does not change it")
	}
	was = read(t, l.CertFile)
	if _, err := p.FinishRotation([]string{"client-ca"}); err != nil {
		t.Fatal(err)
	}
	if read(t, l.CertFile) != was {
		t.Error("changed when the rotation was finished")
	}
	// It is renewed in time all the same.
	if err := p.BeginRotation([]string{"server-ca"}, ""); err == nil {
		t.Error("begun twice")
	}
	c.set(today.AddDate(0, 0, 70))
	p.renewDue()
	if read(t, l.CertFile) == was {
		t.Error("not renewed")
	}
}

func TestClientsOfARotatedCAAreTakenByWhoTrustsTheOldOne(t *testing.T) {
	p := ensure(t, t.TempDir(), &clock{t: today})
	l := Leaf{Name: "c", CA: ClientCA, CertFile: p.File("c.crt"), KeyFile: p.File("c.key"), CommonName: "c"}
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	old := read(t, p.CACert(ClientCA))
	if err := p.BeginRotation([]string{"client-ca"}, ""); err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts([]byte(read(t, l.CertFile)))
	if err != nil || len(certs) != 2 {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	// Of a CSR as well.
	k := ec(t)
	if raw, err := p.Sign(l, k.Public()); err != nil ||
		!strings.HasSuffix(string(raw), string(encodeCerts(certs[1:]))) {
		t.Errorf("a CSR's certificate: %s, %v", raw, err)
	}
	between := x509.NewCertPool()
	between.AddCert(certs[1])
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: pool(t, old), Intermediates: between, CurrentTime: today,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if rs := p.Rotations(); len(rs) != 1 || rs[0].Name != "client-ca" {
		t.Errorf("%+v", rs)
	}
	// No authority's certificates are taken for another's.
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: pool(t, read(t, p.CACert(ServerCA))), Intermediates: between,
		CurrentTime: today}); err == nil {
		t.Error("taken by another authority")
	}
}

// A crash may come after each write; what is there then has to start, with the old authority or the new one.
func TestRotationCutOff(t *testing.T) {
	for _, damage := range []func(p *PKI, before map[string]string){
		func(p *PKI, before map[string]string) { // before the key was written
			for _, n := range []string{"server-ca.key", "server-ca.crt", "server-ca-signer.crt", "service-account.key",
				"service-account.pub"} {
				_ = os.WriteFile(p.File(n), []byte(before[n]), 0o600)
			}
		},
		func(p *PKI, before map[string]string) { // after it
			for _, n := range []string{"server-ca.crt", "server-ca-signer.crt", "service-account.pub"} {
				_ = os.WriteFile(p.File(n), []byte(before[n]), 0o644)
			}
		},
		func(p *PKI, _ map[string]string) { _ = os.Remove(p.rotationsFile()) },
	} {
		dir, c := t.TempDir(), &clock{t: today}
		p := ensure(t, dir, c)
		l := serving(p)
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
		before := map[string]string{}
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, f := range files {
			before[filepath.Base(f)] = read(t, f)
		}
		old := before["server-ca.crt"]
		if err := p.BeginRotation([]string{"server-ca", ServiceAccount}, ""); err != nil {
			t.Fatal(err)
		}
		damage(p, before)
		p = ensure(t, dir, c)
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
		if err := handshake(t, l, pool(t, old)); err != nil {
			t.Errorf("who trusts the old root: %v", err)
		}
		if !strings.Contains(read(t, p.ServiceAccountPublicKey()), before["service-account.pub"]) {
			t.Error("old tokens are not taken any more")
		}
		rest := ensure(t, dir, c) // a further restart, for the one without its note
		if n := len(rest.Rotations()); n != 0 && n != 2 {
			t.Errorf("%d rotations", n)
		} else if n == 0 {
			if err := rest.BeginRotation([]string{"server-ca", ServiceAccount}, ""); err != nil {
				t.Error(err)
			}
		} else if _, err := rest.FinishRotation(nil); err != nil {
			t.Error(err)
		}
	}
}

// pair is what a user brings.
type pair struct {
	cert *x509.Certificate
	key  any
}

func issue(t *testing.T, key any, pub any, by *pair, change func(*x509.Certificate)) *pair {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ours"},
		NotBefore: today.Add(-time.Hour), NotAfter: today.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(tmpl)
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{c, key}
}

func bring(t *testing.T, dir, name string, key any, certs ...*x509.Certificate) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, raw := range map[string][]byte{name +
		".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), name + ".crt": encodeCerts(certs)} {
		if err := os.WriteFile(filepath.Join(dir, file), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func ec(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOwnIntermediateWithItsRoot(t *testing.T) {
	dir, c, from := t.TempDir(), &clock{t: today}, t.TempDir()
	p := ensure(t, dir, c)
	l := serving(p)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	old := read(t, p.CACert(ServerCA))
	rootKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := issue(t, rootKey, rootKey.Public(), nil, nil)
	k := ec(t)
	mid := issue(t, k, k.Public(), root, func(c *x509.Certificate) { c.Subject.CommonName = "between" })
	bring(t, from, "server-ca", k, mid.cert, root.cert)
	if err := p.BeginRotation(nil, from); err != nil {
		t.Fatal(err)
	}
	if rs := p.Rotations(); len(rs) != 1 {
		t.Errorf("only what was brought is rotated: %+v", rs)
	}
	check := func(oldToo bool) {
		t.Helper()
		if err := handshake(t, l, pool(t, string(encodeCerts([]*x509.Certificate{root.cert})))); err != nil {
			t.Errorf("who trusts the root: %v", err)
		}
		if err := handshake(t, l, pool(t, old)); (err == nil) != oldToo {
			t.Errorf("who trusts the old root: %v", err)
		}
	}
	check(true)
	p = ensure(t, dir, c)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	check(true)
	if _, err := p.FinishRotation(nil); err != nil {
		t.Fatal(err)
	}
	check(false)
	ensure(t, dir, c)
	// And back to one of umiak's own.
	if err := p.BeginRotation([]string{"server-ca"}, ""); err != nil {
		t.Fatal(err)
	}
	check(false)
}

func TestIntermediateThatWasThereBeforeTheFirstStart(t *testing.T) {
	dir := t.TempDir()
	rk, k := ec(t), ec(t)
	root := issue(t, rk, rk.Public(), nil, nil)
	mid := issue(t, k, k.Public(), root, func(c *x509.Certificate) { c.Subject.CommonName = "between" })
	bring(t, dir, "server-ca", k, mid.cert, root.cert)
	for range 2 {
		p := ensure(t, dir, &clock{t: today})
		l := serving(p)
		if err := p.Add(l); err != nil {
			t.Fatal(err)
		}
		if err := handshake(t, l, pool(t, string(encodeCerts([]*x509.Certificate{root.cert})))); err != nil {
			t.Error(err)
		}
		if got := read(t, p.CACert(ServerCA)); strings.Count(got, "BEGIN") != 1 {
			t.Errorf("trusted: %s", got)
		}
	}
}

func TestOwnPairsAreChecked(t *testing.T) {
	k, other := ec(t), ec(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // to be refused
	if err != nil {
		t.Skip("this Go makes no weak keys")
	}
	good := issue(t, k, k.Public(), nil, nil)
	mid := issue(t, other, other.Public(), good, func(c *x509.Certificate) { c.Subject.CommonName = "between" })
	for name, tc := range map[string]struct {
		bring func(dir string)
		want  string
	}{
		"nothing":     {func(string) {}, "no such file"},
		"another key": {func(d string) { bring(t, d, "server-ca", other, good.cert) }, "not that of the certificate"},
		"no root":     {func(d string) { bring(t, d, "server-ca", other, mid.cert) }, "missing"},
		"a leaf": {func(d string) {
			bring(t, d, "server-ca", k, issue(t, k, k.Public(), nil,
				func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }).cert)
		}, "not a CA"},
		"one that may not sign": {func(d string) {
			bring(t, d, "server-ca", k, issue(t, k, k.Public(), nil,
				func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }).cert)
		}, ""},
		"one that ends": {func(d string) {
			bring(t, d, "server-ca", k, issue(t, k, k.Public(), nil,
				func(c *x509.Certificate) { c.NotAfter = today.AddDate(0, 0, 3) }).cert)
		}, "30 days"},
		"one that has not begun": {func(d string) {
			bring(t, d, "server-ca", k, issue(t, k, k.Public(), nil,
				func(c *x509.Certificate) { c.NotBefore = today.AddDate(0, 0, 3) }).cert)
		}, "valid from"},
		"a weak key": {func(d string) {
			bring(t, d, "server-ca", weak,
				issue(t, weak, weak.Public(), nil, nil).cert)
		}, "2048"},
		"rubbish": {func(d string) {
			_ = os.WriteFile(filepath.Join(d, "server-ca.key"), []byte("x"),
				0o600)
		}, "no private key"},
		"something enormous": {func(d string) {
			_ = os.WriteFile(filepath.Join(d, "server-ca.key"), make([]byte, 1<<20),
				0o600)
		}, "more than"},
		"a root that allows no path": {func(d string) {
			root := issue(t, k, k.Public(), nil, func(c *x509.Certificate) { c.MaxPathLenZero = true })
			bring(t, d, "server-ca", other, issue(t,
				other, other.Public(), root, func(c *x509.Certificate) { c.Subject.CommonName = "b" }).cert, root.cert)
		}, "length of its path"},
		"the key of the other CA": {func(d string) {
			bring(t, d, "server-ca", k, good.cert)
			bring(t, d, "client-ca", k,
				good.cert)
		}, "one of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			from := t.TempDir()
			tc.bring(from)
			p := ensure(t, t.TempDir(), &clock{t: today})
			before := read(t, p.CAKey(ServerCA))
			names := []string{"server-ca"}
			if _, err := os.Stat(filepath.Join(from, "client-ca.key")); err == nil {
				names = nil
			}
			err := p.BeginRotation(names, from)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if read(t, p.CAKey(ServerCA)) != before || len(p.Rotations()) > 0 {
				t.Error("something was changed")
			}
		})
	}
	p := ensure(t, t.TempDir(), &clock{t: today})
	if err := p.BeginRotation([]string{"x"}, ""); !errors.Is(err, ErrUnknownName) {
		t.Errorf("got %v", err)
	}
}

func TestEndedCAIsReplacedWhileNothingRuns(t *testing.T) {
	dir, c := t.TempDir(), &clock{t: today}
	l := serving(ensure(t, dir, c))
	c.set(today.AddDate(11, 0, 0))
	if _, err := Ensure(Config{Dir: dir, Now: c.now}); err == nil ||
		!strings.Contains(err.Error(), "rotate-ca server-ca") {
		t.Fatalf("got %v", err)
	}
	p, err := Open(Config{Dir: dir, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.BeginRotation(nil, ""); err != nil {
		t.Fatal(err)
	}
	p = ensure(t, dir, c)
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	if cert(t, l.CertFile).NotAfter.Before(c.now()) {
		t.Error("the leaf has ended")
	}
}

func TestRenewByName(t *testing.T) {
	p := ensure(t, t.TempDir(), &clock{t: today})
	l := serving(p)
	told := 0
	l.Renewed = func() error { told++; return nil }
	if err := p.Add(l); err != nil {
		t.Fatal(err)
	}
	serial, key := cert(t, l.CertFile).SerialNumber, read(t, l.KeyFile)
	if _, err := p.Renew("none"); err == nil || !strings.Contains(err.Error(), "there are s") {
		t.Errorf("got %v", err)
	}
	list, err := p.Renew("s")
	if err != nil || len(list) != 1 || told != 2 {
		t.Errorf("%v, %v, told %d times", list, err, told)
	}
	if cert(t, l.CertFile).SerialNumber.Cmp(serial) == 0 || read(t, l.KeyFile) != key {
		t.Error("not renewed with its key")
	}
}

func TestSharedFilesAreAllThatAnotherServerNeeds(t *testing.T) {
	dir, other, c := t.TempDir(), t.TempDir(), &clock{t: today}
	p := ensure(t, dir, c)
	if err := p.BeginRotation(nil, ""); err != nil {
		t.Fatal(err)
	}
	for _, f := range SharedFiles() {
		raw, err := os.ReadFile(filepath.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(other, f), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	q := ensure(t, other, c)
	for _, ca := range authorities {
		if string(q.CAPEM(ca)) != string(p.CAPEM(ca)) {
			t.Errorf("%s differs", ca)
		}
	}
	if read(t, q.ServiceAccountPublicKey()) != read(t, p.ServiceAccountPublicKey()) || len(q.Rotations()) != 5 {
		t.Error("rotations differ")
	}
}
