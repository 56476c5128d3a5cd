package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// notBefore is where every certificate's validity begins: see the package comment.
var notBefore = time.Unix(0, 0).UTC()

// authority is one CA.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// ensureAuthority loads the CA in PATH.{crt,key} or makes it. The key is written first, so that a crash
// can leave a key without a certificate, which is completed, but never the other way round.
func ensureAuthority(path, name string, notAfter time.Time) (*authority, error) {
	key, err := ensureKey(path + ".key")
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path + ".crt")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		raw, err = selfSign(key, name, notAfter)
		if err != nil {
			return nil, err
		}
		if err := atomicfile.Write(path+".crt", raw, 0o644); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read CA: %w", err)
	}
	cert, err := parseCert(raw)
	if err != nil {
		return nil, fmt.Errorf("read CA %s.crt: %w", path, err)
	}
	if !cert.IsCA {
		return nil, fmt.Errorf("read CA %s.crt: not a CA certificate", path)
	}
	if !matches(cert, key) {
		return nil, fmt.Errorf("read CA %s.crt: %s.key is not its key; restore the pair from a backup", path, path)
	}
	return &authority{cert: cert, key: key, pem: raw}, nil
}

func selfSign(key crypto.Signer, name string, notAfter time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter.UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA %s: %w", name, err)
	}
	return encodeCert(der), nil
}

// sign issues a certificate for the public key.
func (a *authority) sign(l Leaf, pub crypto.PublicKey, notAfter time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	usage := x509.ExtKeyUsageClientAuth
	if l.Server {
		usage = x509.ExtKeyUsageServerAuth
	}
	t := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: l.CommonName, Organization: l.Organization},
		NotBefore:             notBefore,
		NotAfter:              notAfter.UTC(),
		DNSNames:              l.DNSNames,
		IPAddresses:           l.ips(),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", l.CommonName, err)
	}
	return encodeCert(der), nil
}

// behind is what stands in a certificate file after the leaf.
func (a *authority) behind(l Leaf) []byte {
	if l.WithCA {
		return a.pem
	}
	return nil
}

// ensureKey loads the private key in file or makes one.
func ensureKey(file string) (crypto.Signer, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, fmt.Errorf("make key: %w", err)
		}
		return key, atomicfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	key, err := parseKey(raw)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", file, err)
	}
	return key, os.Chmod(file, 0o600)
}

// parseKey reads EC keys as written above, and PKCS#8 and RSA ones as a user may bring them.
func parseKey(raw []byte) (crypto.Signer, error) {
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return nil, errors.New("no private key in PEM form")
		}
		switch b.Type {
		case "EC PRIVATE KEY":
			return x509.ParseECPrivateKey(b.Bytes)
		case "RSA PRIVATE KEY":
			return x509.ParsePKCS1PrivateKey(b.Bytes)
		case "PRIVATE KEY":
			k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, err
			}
			s, ok := k.(crypto.Signer)
			if !ok {
				return nil, errors.New("a key that cannot sign")
			}
			return s, nil
		}
	}
}

// parseCert reads the first certificate.
func parseCert(raw []byte) (*x509.Certificate, error) {
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return nil, errors.New("no certificate in PEM form")
		}
		if b.Type == "CERTIFICATE" {
			return x509.ParseCertificate(b.Bytes)
		}
	}
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func matches(c *x509.Certificate, key crypto.Signer) bool {
	a, errA := x509.MarshalPKIXPublicKey(c.PublicKey)
	b, errB := x509.MarshalPKIXPublicKey(key.Public())
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
