package certfiles_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/layout"
)

var now = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

func issue(t *testing.T, name string, ca bool, ends time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: ends,
		IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func put(t *testing.T, file string, raw []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInspect(t *testing.T) {
	dirs := layout.Dirs{Data: t.TempDir()}
	if _, err := certfiles.Inspect(dirs, now, 0); err == nil || !strings.Contains(err.Error(), "has not run") {
		t.Errorf("an empty folder: %v", err)
	}
	in := func(days int) time.Time { return now.AddDate(0, 0, days) }
	ca, old := issue(t, "new", true, in(3650)), issue(t, "old", true, in(1))
	put(t, filepath.Join(dirs.ServerPKI(), "server-ca.crt"), append(ca, old...))
	put(t, filepath.Join(dirs.ServerPKI(), "server-ca-signer.crt"), ca)
	put(t, filepath.Join(dirs.ServerPKI(), "apiserver.crt"), append(issue(t, "api", false, in(60)), ca...))
	put(t, filepath.Join(dirs.ServerPKI(), "scheduler.crt"), issue(t, "sched", false, in(10)))
	put(t, filepath.Join(dirs.AgentPKI(), "kubelet-client.crt"), issue(t, "node", false, in(-2)))
	put(t, filepath.Join(dirs.AgentPKI(), "kubelet-serving.crt"), []byte("x"))
	put(t, dirs.AdminKubeconfig(),
		[]byte("users:\n- user:\n    client-certificate-data: "+base64.StdEncoding.EncodeToString(issue(t, "admin",
			false, in(300)))+"\n"))
	list, err := certfiles.Inspect(dirs, now, 14*24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"server-ca CN=new": certfiles.StateOK, "server-ca CN=old": certfiles.StateOld,
		"apiserver CN=api":   certfiles.StateOK,
		"scheduler CN=sched": certfiles.StateSoon, "node kubelet-client CN=node": certfiles.StateEnded,
		"node kubelet-serving ":     certfiles.StateUnreadable,
		"admin.kubeconfig CN=admin": certfiles.StateOK,
	}
	for _, c := range list {
		if want[c.Name+" "+c.Subject] != c.State {
			t.Errorf("%+v", c)
		}
		if c.Fine() != (c.State == certfiles.StateOK || c.State == certfiles.StateOld) {
			t.Errorf("fine? %+v", c)
		}
		if c.Name == "apiserver" && (c.Days != 60 || !c.Renews.Equal(in(30)) || c.UsedBy == "") {
			t.Errorf("%+v", c)
		}
	}
	if len(list) != len(want) || !list[0].CA {
		t.Errorf("%d certificates", len(list))
	}
	var b bytes.Buffer
	if err := certfiles.Print(&b, list); err != nil || !strings.Contains(b.String(), "API server, serving") {
		t.Errorf("%v\n%s", err, b.String())
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte("users: [{user: {client-certificate-data: eA==}}]"),
		[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, kubeconfig, crt []byte) {
		dirs := layout.Dirs{Data: t.TempDir()}
		put(t, dirs.AdminKubeconfig(), kubeconfig)
		put(t, filepath.Join(dirs.AgentPKI(), "x.crt"), crt)
		list, err := certfiles.Inspect(dirs, now, 0)
		for _, c := range list {
			if err != nil || c.State == "" {
				t.Errorf("%+v, %v", c, err)
			}
		}
	})
}
