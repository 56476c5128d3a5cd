package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/nodecerts"
	serverjoin "github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// bringIntermediate puts a client CA that is an intermediate into a folder, with its root.
func bringIntermediate(t *testing.T, dir string) {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	issue := func(name string, key *ecdsa.PrivateKey, by *x509.Certificate, byKey *ecdsa.PrivateKey) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
			IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(10, 0, 0),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
		if by == nil {
			by = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by, key.Public(), byKey)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c
	}
	rootKey, key := newKey(), newKey()
	root := issue("our root", rootKey, nil, rootKey)
	between := issue("our intermediate", key, root, rootKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var crt []byte
	for _, c := range []*x509.Certificate{between, root} {
		crt = append(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	for file, raw := range map[string][]byte{"client-ca.crt": crt,
		"client-ca.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, file), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClientCAThatIsAnIntermediate: nodes with certificates of an intermediate are known and renew without a token,
// and those of a foreign root are not.
func TestClientCAThatIsAnIntermediate(t *testing.T) {
	rotated := func(finish bool) func(dir string) {
		return func(dir string) {
			from := t.TempDir()
			bringIntermediate(t, from)
			for i, step := range []func(p *pki.PKI) error{
				func(p *pki.PKI) error { return p.BeginRotation([]string{string(pki.ClientCA)}, from) },
				func(p *pki.PKI) error { _, err := p.FinishRotation(nil); return err },
			} {
				if i == 1 && !finish {
					continue
				}
				p, err := pki.Ensure(pki.Config{Dir: dir}) // as at a start
				if err == nil {
					err = step(p)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	foreign := newServer(t)
	stranger := newMachine(t, foreign)
	if _, err := stranger.joiner(t, foreign, foreign.token(t, serverjoin.Spec{})).Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	for name, prepare := range map[string]func(dir string){
		"from the first start":          func(dir string) { bringIntermediate(t, dir) },
		"by rotate-ca, before --finish": rotated(false),
		"by rotate-ca, after --finish":  rotated(true),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			prepare(dir)
			s := newServerIn(t, dir)
			m := newMachine(t, s)
			j := m.joiner(t, s, s.token(t, serverjoin.Spec{}))
			if _, err := j.Join(t.Context(), n1); err != nil {
				t.Fatal(err)
			}
			if by := m.cert(t, nodecerts.AgentClient).Issuer.CommonName; by != "our intermediate" {
				t.Fatalf("the certificate is issued by %s", by)
			}
			j.cfg.Token.Secret = ""
			for _, path := range []string{joinwire.CheckPath, joinwire.RenewPath} {
				if err := j.renew(t.Context(), path); err != nil {
					t.Errorf("%s: %v", path, err)
				}
			}
			pair, err := stranger.joiner(t, foreign, foreign.token(t, serverjoin.Spec{})).keyPair(nodecerts.AgentClient)
			if err != nil {
				t.Fatal(err)
			}
			req, err := j.request()
			if err != nil {
				t.Fatal(err)
			}
			pair.Certificate = append(pair.Certificate[:1:1], foreign.pki.CAPEM(pki.ClientCA))
			if b, _ := pem.Decode(foreign.pki.CAPEM(pki.ClientCA)); b != nil {
				pair.Certificate[1] = b.Bytes
			}
			c := joinclient.Client{CAs: s.pki.CAPEM(pki.ServerCA), Certificate: pair, Now: time.Now}
			if _, err := c.Post(t.Context(), s.Listener.Addr().String(), joinwire.RenewPath, req,
				&joinwire.NodeResponse{}); !joinclient.IsCode(err, joinwire.BadIdentity) {
				t.Errorf("a chain to a foreign root: %v", err)
			}
		})
	}
}
