package nodename

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/layout"
)

// finder returns a Finder for a new data directory on a machine with a host name.
func finder(t *testing.T, host string) Finder {
	t.Helper()
	d := layout.Dirs{Data: t.TempDir(), Run: "/run/x"}
	return Finder{Dirs: d, Host: func() (string, error) { return host, nil }}
}

func TestFirstStart(t *testing.T) {
	long := strings.Repeat("a", 64)
	for host, want := range map[string]string{"Pi-3": "pi-3", "pi.lan": "pi.lan", "pi.lan.": "pi.lan",
		strings.Repeat("a", 63): strings.Repeat("a", 63)} {
		n, err := finder(t, host).Find()
		if err != nil || n.Name != want || n.Remark != "" {
			t.Errorf("%s: %+v, %v", host, n, err)
		}
	}
	for host, want := range map[string]string{long: `the host name "` + long +
		`" has 64 characters, and 63 is the limit`, "my_pi": "set node-name", "-": "cannot be a node's"} {
		if _, err := finder(t, host).Find(); err == nil || !strings.Contains(err.Error(), "node-name: the host name ") {
			t.Errorf("%s: want %q, got %v", host, want, err)
		}
	}
	f := finder(t, "pi")
	f.Set = long
	if _, err := f.Find(); err == nil || !strings.Contains(err.Error(), "64 characters, and 63 is the limit") {
		t.Errorf("got %v", err)
	}
	f = finder(t, "")
	f.Host = func() (string, error) { return "", errors.New("no") }
	if _, err := f.Find(); err == nil || !strings.Contains(err.Error(), "set node-name") {
		t.Errorf("got %v", err)
	}
}

func TestTenMachinesCalledLocalhostAreTenNodes(t *testing.T) {
	seen := map[string]bool{}
	for _, host := range []string{"localhost", "localhost.localdomain", "(none)", "", "LOCALHOST", "localhost"} {
		f := finder(t, host)
		n, err := f.Claim()
		if err != nil || !strings.HasPrefix(n.Name, "node-") || n.Remark == "" || seen[n.Name] {
			t.Errorf("%q: %+v, %v", host, n, err)
		}
		seen[n.Name] = true
		// The name stays when the machine gets a host name later.
		for _, later := range []string{host, "pi", "localhost"} {
			f.Host = func() (string, error) { return later, nil }
			again, err := f.Claim()
			if err != nil || again.Name != n.Name || !strings.Contains(again.Remark, "stays "+n.Name) {
				t.Errorf("%q then %q: %+v, %v", host, later, again, err)
			}
		}
	}
}

// TestMachinesOfOneImage: with-node-id makes their names differ, and each keeps its own.
func TestMachinesOfOneImage(t *testing.T) {
	seen := map[string]bool{}
	for _, set := range []string{"", "edge", ""} {
		f := finder(t, "pi")
		f.Set, f.WithID = set, true
		base := "pi"
		if set != "" {
			base = set
		}
		n, err := f.Claim()
		if err != nil || len(n.Name) != len(base)+9 || !strings.HasPrefix(n.Name, base+"-") || seen[n.Name] {
			t.Fatalf("%q: %+v, %v", set, n, err)
		}
		seen[n.Name] = true
		// It stays: at the next start, where a server has put the whole name into the settings, when it has joined.
		for _, again := range []string{set, n.Name} {
			g := f
			g.Set = again
			if m, err := g.Find(); err != nil || m.Name != n.Name {
				t.Errorf("%q: %+v, %v", again, m, err)
			}
		}
		if err := os.MkdirAll(f.Dirs.DB(), 0o700); err != nil { // it has joined
			t.Fatal(err)
		}
		f.Set = "other"
		if m, err := f.Find(); err == nil || !strings.Contains(err.Error(), "has joined as node") {
			t.Errorf("%+v, %v", m, err)
		}
	}
	// A machine that has joined without a suffix gets none.
	f := finder(t, "pi")
	if _, err := f.Claim(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(f.Dirs.DB(), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"", "pi"} {
		f.Set, f.WithID = set, true
		if n, err := f.Find(); err != nil || n.Name != "pi" {
			t.Errorf("%q: %+v, %v", set, n, err)
		}
	}
	f = finder(t, strings.Repeat("a", 60))
	f.WithID = true
	if _, err := f.Find(); err == nil || !strings.Contains(err.Error(), "with-node-id") {
		t.Error(err)
	}
}

func TestTheNameStays(t *testing.T) {
	f := finder(t, "one")
	if n, err := f.Claim(); err != nil || n.Name != "one" {
		t.Fatal(n, err)
	}
	for _, host := range []string{"two", "localhost", "", strings.Repeat("x", 64)} {
		f.Host = func() (string, error) { return host, nil }
		if n, err := f.Claim(); err != nil || n.Name != "one" || !strings.Contains(n.Remark, "stays one") {
			t.Errorf("%q: %+v, %v", host, n, err)
		}
	}
	f.Host = func() (string, error) { return "", errors.New("no") }
	if n, err := f.Claim(); err != nil || n.Name != "one" {
		t.Error(n, err)
	}
	f.Set = "one"
	if n, err := f.Claim(); err != nil || n.Name != "one" || n.Remark != "" {
		t.Error(n, err)
	}
	// Until the machine has joined, another name can be set, since the cluster may have refused the first.
	f.Set = "three"
	if n, err := f.Find(); err != nil || n.Name != "three" {
		t.Error(n, err)
	}
	if err := os.MkdirAll(f.Dirs.DB(), 0o700); err != nil {
		t.Fatal(err)
	}
	f.Set = "two"
	if _, err := f.Claim(); err == nil || !strings.Contains(err.Error(), `has joined as node "one"`) ||
		!strings.Contains(err.Error(), "write two into "+f.Dirs.NodeName()) {
		t.Errorf("got %v", err)
	}
	// The remedy in the error works.
	if err := os.WriteFile(f.Dirs.NodeName(), []byte("two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Claim(); err != nil || n.Name != "two" {
		t.Error(n, err)
	}
}

func TestANodeOfAnEarlierVersionHasItsNameFromItsCertificate(t *testing.T) {
	f := finder(t, "new")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:old"}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(f.Dirs.AgentPKI(), "kubelet-client.crt")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700),
		os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Claim(); err != nil || n.Name != "old" || !strings.Contains(n.Remark, "stays old") {
		t.Error(n, err)
	}
}
