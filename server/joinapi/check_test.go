package joinapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/joinwire"
)

func csr(t testing.TB, key crypto.Signer, subject pkix.Name, dns []string, ips ...net.IP) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: subject, DNSNames: dns, IPAddresses: ips}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func name(cn string, o ...string) pkix.Name { return pkix.Name{CommonName: cn, Organization: o} }

func request(t testing.TB, k crypto.Signer) *joinwire.NodeRequest {
	return &joinwire.NodeRequest{
		Name: "n1", IPs: []string{"10.0.0.7", "fd00::7"}, Password: strings.Repeat("p", 32),
		Kubelet: csr(t, k, name("system:node:n1", "system:nodes"), nil),
		Agent:   csr(t, k, name("umiak:agent:n1", "umiak:agents"), nil),
		Serving: csr(t, k, name("system:node:n1", "system:nodes"), []string{"n1"}, net.ParseIP("10.0.0.7"),
			net.ParseIP("fd00::7")),
	}
}

var servers = reserved{
	names: []string{"kubernetes", "srv"}, ips: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	ranges: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
}

func TestCheck(t *testing.T) {
	k := key(t)
	if n, err := check(request(t, k), servers); err != nil || n.name != "n1" || len(n.ips) != 2 {
		t.Fatalf("%+v, %v", n, err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	broken := func(r *joinwire.NodeRequest) {
		b, _ := pem.Decode([]byte(r.Kubelet))
		b.Bytes[len(b.Bytes)-1] ^= 1
		r.Kubelet = string(pem.EncodeToMemory(b))
	}
	for what, change := range map[string]func(*joinwire.NodeRequest){
		"server's name":     func(r *joinwire.NodeRequest) { r.Name = "srv" },
		"long name":         func(r *joinwire.NodeRequest) { r.Name = strings.Repeat("n", 64) },
		"short password":    func(r *joinwire.NodeRequest) { r.Password = "p" },
		"no address":        func(r *joinwire.NodeRequest) { r.IPs = nil },
		"many addresses":    func(r *joinwire.NodeRequest) { r.IPs = strings.Fields(strings.Repeat("10.0.0.7 ", 9)) },
		"server's address":  func(r *joinwire.NodeRequest) { r.IPs = []string{"10.0.0.1"} },
		"mapped address":    func(r *joinwire.NodeRequest) { r.IPs = []string{"::ffff:10.0.0.1"} },
		"Service's address": func(r *joinwire.NodeRequest) { r.IPs = []string{"10.43.0.10"} },
		"link-local":        func(r *joinwire.NodeRequest) { r.IPs = []string{"fe80::1"} },
		"zone":              func(r *joinwire.NodeRequest) { r.IPs = []string{"fd00::1%eth0"} },
		"multicast":         func(r *joinwire.NodeRequest) { r.IPs = []string{"224.0.0.1"} },
		"other user": func(r *joinwire.NodeRequest) {
			r.Kubelet = csr(t, k,
				name("system:node:n2", "system:nodes"), nil)
		},
		"more groups": func(r *joinwire.NodeRequest) {
			r.Agent = csr(t, k, name("umiak:agent:n1", "umiak:agents", "system:masters"), nil)
		},
		"more of a subject": func(r *joinwire.NodeRequest) {
			r.Agent = csr(t, k, pkix.Name{CommonName: "umiak:agent:n1", Organization: []string{"umiak:agents"},
				Country: []string{"x"}}, nil)
		},
		"client with names": func(r *joinwire.NodeRequest) {
			r.Kubelet = csr(t, k, name("system:node:n1", "system:nodes"), []string{"n1"})
		},
		"kubernetes": func(r *joinwire.NodeRequest) {
			r.Serving = csr(t, k, name("system:node:n1", "system:nodes"), []string{"n1", "kubernetes"})
		},
		"unclaimed address": func(r *joinwire.NodeRequest) {
			r.Serving = csr(t, k, name("system:node:n1", "system:nodes"), []string{"n1"}, net.ParseIP("10.0.0.8"))
		},
		"weak key": func(r *joinwire.NodeRequest) {
			r.Kubelet = csr(t, weak,
				name("system:node:n1", "system:nodes"), nil)
		},
		"broken signature": broken,
		"two requests":     func(r *joinwire.NodeRequest) { r.Kubelet += r.Kubelet },
		"a certificate":    func(r *joinwire.NodeRequest) { r.Kubelet = strings.ReplaceAll(r.Kubelet, " REQUEST", "") },
	} {
		r := request(t, k)
		change(r)
		if _, err := check(r, servers); err == nil {
			t.Errorf("%s is let in", what)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	f.Add(csr(f, key(f), name("system:node:n1", "system:nodes"), []string{"n1"}))
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCSR(s, "system:node:n1", []string{"system:nodes"})
		if err == nil && (c.Subject.CommonName != "system:node:n1" || c.CheckSignature() != nil) {
			t.Errorf("%q is let in", s)
		}
	})
}
