package join

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/token"
)

// FuzzAccept: an answer of a server leaves a node with certificates of its keys, with authorities and with servers,
// or changes nothing.
func FuzzAccept(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		f.Fatal(err)
	}
	crt, own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
		Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	for _, change := range []func(r *joinwire.NodeResponse){
		func(*joinwire.NodeResponse) {},
		func(r *joinwire.NodeResponse) { r.ServerCA = "" },
		func(r *joinwire.NodeResponse) { r.LifetimeSeconds = 1 << 62 },
		func(r *joinwire.NodeResponse) { r.Servers = []string{"no port"} },
		func(r *joinwire.NodeResponse) { r.Kubelet = "x" },
	} {
		r := &joinwire.NodeResponse{Kubelet: string(crt), Agent: string(crt), Serving: string(crt),
			ServerCA: string(crt), ClientCA: string(crt), LifetimeSeconds: 3600, Servers: []string{"192.0.2.1:6443"}}
		change(r)
		text, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, "")
		f.Add(text, "ab")
	}
	f.Fuzz(func(t *testing.T, text []byte, pinned string) {
		var resp joinwire.NodeResponse
		if json.Unmarshal(text, &resp) != nil {
			return
		}
		dirs := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
		lb, err := apibalancer.New(apibalancer.Config{Listen: "127.0.0.1:6444",
			File: filepath.Join(dirs.Data, "servers.json"), Given: "192.0.2.1:6443", Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		j, err := New(Config{Dirs: dirs, Local: "127.0.0.1:6444", Balancer: lb, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range identities {
			if err := os.WriteFile(j.file(id+".key"), own, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.accept(&resp, pinned); err != nil {
			if left, _ := filepath.Glob(j.file("*.crt")); len(left) > 0 {
				t.Errorf("refused (%v), and written: %v", err, left)
			}
			return
		}
		for _, id := range identities {
			if _, err := tls.LoadX509KeyPair(j.file(id+".crt"), j.file(id+".key")); err != nil {
				t.Error(err)
			}
		}
		for _, ca := range []string{serverCA, clientCA} {
			raw, err := os.ReadFile(j.file(ca))
			if err != nil || !x509.NewCertPool().AppendCertsFromPEM(raw) || pinned != "" && ca == serverCA &&
				!token.HoldsCA(raw, pinned) {
				t.Errorf("%s: %v, %q", ca, err, raw)
			}
		}
		if s, err := os.ReadFile(dirs.Joined()); err != nil {
			t.Error(err)
		} else if got := new(joined); json.Unmarshal(s, got) != nil || got.Lifetime <= 0 {
			t.Errorf("written down: %s", s)
		}
	})
}
