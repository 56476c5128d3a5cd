package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

var hash = strings.Repeat("0a", 32)

func TestParse(t *testing.T) {
	const secret = "s3cret-with.dots-in-it"
	line := "um1." + hash + ".server." + secret
	got, err := Parse(" " + line + "\n")
	if err != nil || got != (Token{CA: hash, ID: "server", Secret: secret}) || got.Line() != line {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err = Parse("hunter2"); err != nil || got != (Token{Secret: "hunter2"}) {
		t.Fatalf("%v, %v", got, err)
	}
	k3s := "K10" + hash + "::server:" + secret
	if got, err = Parse(k3s); err != nil || got != (Token{CA: hash, User: "server", Secret: secret}) ||
		got.Line() != k3s || strings.Contains(fmt.Sprint(got), secret) {
		t.Fatalf("%v, %v", got, err)
	}
	for in, want := range map[string]string{
		"K10" + hash + "::abcdef.s3cret": "`k3s token create`",
		"K10" + hash + "::root:s3cret":   "neither server nor node",
		"K10" + hash + "::node:":         "secret has 0",
		"K10" + hash[2:] + "::node:x":    "64 hex digits",
		"":                               "empty",
		"two words":                      "space",
		"um1.":                           "cut off",
		"um1." + hash:                    "cut off",
		"um1." + hash + ".id":            "cut off",
		"um1." + hash + ".id.":           "secret has 0",
		"um1.xyz.id." + secret:           "64 hex digits",
		"um1." + hash + ".ID_." + secret: "not an id",
		"um1." + hash + ".id.s3cr\x00et": "not ASCII",
		strings.Repeat("x", 1000):        "1000 bytes",
	} {
		_, err := Parse(in)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "umiak token create") {
			t.Errorf("%q: %v", in, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cr") {
			t.Errorf("the secret stands in %v", err)
		}
	}
}

func TestTheSecretIsNotPrinted(t *testing.T) {
	k := New(hash, "")
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", k)
	if out := fmt.Sprintf("%v %+v %#v %s %q", k, k, k, k, k) + log.String(); strings.Contains(out, k.Secret) {
		t.Errorf("%s", out)
	}
	if other := New(hash, ""); other.Secret == k.Secret || other.ID == k.ID || len(k.Secret) != 32 {
		t.Errorf("%s, %s", k.Line(), other.Line())
	}
	if got, err := Parse(k.Line()); err != nil || got != k {
		t.Errorf("%v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("um1." + hash + ".id.secret")
	f.Add("um1.a.b.c")
	f.Add("pass word")
	f.Add("K10" + hash + "::server:secret")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(k.Line())
		if err != nil || again != k {
			t.Errorf("%q: %q, %v", s, again.Line(), err)
		}
	})
}

// authority signs serving certificates for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true,
		BasicConstraintsValid: true,
		NotBefore:             time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) serving(t *testing.T, name string, usage x509.ExtKeyUsage, behind ...authority) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "s"},
		DNSNames:  []string{name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, b := range behind {
		c.Certificate = append(c.Certificate, b.cert.Raw)
	}
	return c
}

// serve accepts connections and reports the bytes that clients send inside TLS.
func serve(t *testing.T, c tls.Certificate) (addr string, said chan int) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{c}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	said = make(chan int, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func(conn net.Conn) {
				defer conn.Close()
				n, _ := conn.Read(make([]byte, 1000))
				said <- n
			}(conn)
		}
	}()
	return l.Addr().String(), said
}

func TestFetchCAOfMulticastName(t *testing.T) {
	_, err := Token{}.FetchCA(t.Context(), "there-is-none.local:6443", time.Now)
	if err == nil || !strings.Contains(err.Error(), "names in .local") {
		t.Error(err)
	}
}

func TestFetchCA(t *testing.T) {
	good, evil := newAuthority(t), newAuthority(t)
	for name, c := range map[string]struct {
		cert tls.Certificate
		hash string
		now  time.Time
		want error
	}{
		"right":   {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good), HashCA(good.cert), time.Now(), nil},
		"no hash": {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good), "", time.Now(), nil},
		"another cluster": {evil.serving(t, ServerName, x509.ExtKeyUsageServerAuth, evil), HashCA(good.cert),
			time.Now(), ErrWrongServer},
		"as k3s hashes it": {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good),
			HashSecret(string(EncodeCA(good.cert))), time.Now(), nil},
		"borrowed CA": {evil.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good), HashCA(good.cert),
			time.Now(), ErrWrongServer},
		"no CA": {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth), HashCA(good.cert), time.Now(),
			ErrWrongServer},
		"a node's": {good.serving(t, "node1", x509.ExtKeyUsageServerAuth, good), HashCA(good.cert), time.Now(),
			ErrWrongServer},
		"a client's": {good.serving(t, ServerName, x509.ExtKeyUsageClientAuth, good), HashCA(good.cert),
			time.Now(), ErrWrongServer},
		"clock far ahead": {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good), HashCA(good.cert),
			time.Now().AddDate(20, 0, 0), ErrClock},
		"clock far behind": {good.serving(t, ServerName, x509.ExtKeyUsageServerAuth, good), HashCA(good.cert),
			time.Unix(1000, 0), nil},
	} {
		t.Run(name, func(t *testing.T) {
			addr, said := serve(t, c.cert)
			ca, err := Token{CA: c.hash}.FetchCA(context.Background(), addr, func() time.Time { return c.now })
			if !errors.Is(err, c.want) || err == nil && !ca.Equal(good.cert) {
				t.Errorf("%v", err)
			}
			if n := <-said; n != 0 {
				t.Errorf("%d bytes were sent", n)
			}
		})
	}
	addr, said := serve(t, evil.serving(t, ServerName, x509.ExtKeyUsageServerAuth, evil))
	_, err := Token{CA: HashCA(good.cert), User: "server", Secret: "x"}.FetchCA(t.Context(), addr, time.Now)
	if !errors.Is(err, ErrWrongServer) || !strings.Contains(err.Error(), "a hash that k3s has printed") || <-said != 0 {
		t.Errorf("with a hash of k3s: %v", err)
	}
	if err := CheckClock(time.Unix(1000, 0)); !errors.Is(err, ErrClock) || !strings.Contains(err.Error(), "1970") {
		t.Error(err)
	}
}

func TestMade(t *testing.T) {
	if s := New("", "").Secret; !Made(s) {
		t.Errorf("%q is taken for a person's", s)
	}
	for _, s := range []string{"", "hunter2", "Correct-Horse-Battery-Staple-123", strings.Repeat("a", 31),
		strings.Repeat("a", 33)} {
		if Made(s) {
			t.Errorf("%q is taken for one that was made", s)
		}
	}
}
