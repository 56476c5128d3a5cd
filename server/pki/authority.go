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
	"slices"
	"time"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// notBefore is where every certificate's validity begins: see the package comment.
var notBefore = time.Unix(0, 0).UTC()

// authority is one CA. Its files are
//
//	NAME.key         the key that signs; after a rotation also the certificate that goes with it, and those
//	                 above it: key and certificate then change in one rename
//	NAME.crt         the trusted root, and during a rotation the root before it
//	NAME-signer.crt  the one certificate that signs, in the form that the controller manager reads
//	NAME-old.crt     during a rotation: the new key's certificate from the old authority, and the old chain
//	NAME-next.crt    before a rotation of several servers: the root that is going to sign, trusted already
//
// A value is never changed: a rotation makes a new one.
type authority struct {
	cert  *x509.Certificate // signs
	key   crypto.Signer
	above []*x509.Certificate // who signed it, up to the root; none where it is a root itself
	// during a rotation: cert's key certified by the authority before, then that and who is above it
	old  []*x509.Certificate
	next []*x509.Certificate // roots that are trusted although nothing is signed below them yet
}

// root returns the certificate that is trusted when no rotation is under way.
func (a *authority) root() *x509.Certificate {
	if len(a.above) > 0 {
		return a.above[len(a.above)-1]
	}
	return a.cert
}

// roots are all that are trusted, the present one first.
func (a *authority) roots() []*x509.Certificate {
	out := []*x509.Certificate{a.root()}
	for _, c := range a.old {
		if selfSigned(c) && !c.Equal(out[0]) {
			out = append(out, c)
		}
	}
	return out
}

// ends is when nothing signed by it is taken any more: at the first end in the chain.
func (a *authority) ends() time.Time {
	end := a.cert.NotAfter
	for _, c := range a.above {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

func (a *authority) bundle() []byte { return encodeCerts(append(a.roots(), a.next...)) }

// chain returns the certificates that follow the leaf in its file, so that a client that trusts any of the roots
// trusts the leaf. With roots it contains them too: a joining machine, which has only a hash, finds its root there.
func (a *authority) chain(roots bool) []byte {
	var out []*x509.Certificate
	all := append([]*x509.Certificate{a.cert}, a.above...)
	for _, c := range append(all, a.old...) {
		if !selfSigned(c) {
			out = append(out, c)
		}
	}
	if roots {
		out = append(out, a.roots()...)
	}
	return encodeCerts(out)
}

// ensureAuthority loads the CA in PATH.{crt,key} or makes it. The key is written first, so that a crash
// can leave a key without a certificate, which is completed, but never the other way round.
func ensureAuthority(path, name string, notAfter time.Time) (*authority, error) {
	key, err := ensureKey(path + ".key")
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path + ".key")
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	certs, err := parseCerts(raw)
	if err != nil {
		return nil, fmt.Errorf("read CA %s.key: %w", path, err)
	}
	if len(certs) == 0 {
		if certs, err = ensureOwnCert(path, name, key, notAfter); err != nil {
			return nil, err
		}
	}
	a, err := newAuthority(key, certs)
	if err != nil {
		return nil, fmt.Errorf("read CA %s: %w; restore the pair from a backup", path, err)
	}
	if len(a.above) > 0 && !bytes.Contains(raw, []byte("BEGIN CERTIFICATE")) {
		// The user brought an intermediate before the first start: NAME.crt will hold roots only.
		if err := a.commit(path); err != nil {
			return nil, err
		}
	}
	if err := a.readRotation(path); err != nil {
		return nil, err
	}
	return a, a.publish(path)
}

// ensureOwnCert reads the certificate in PATH.crt or makes a self-signed one.
func ensureOwnCert(path, name string, key crypto.Signer, notAfter time.Time) ([]*x509.Certificate, error) {
	raw, err := os.ReadFile(path + ".crt")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if raw, err = selfSign(key, name, notAfter); err != nil {
			return nil, err
		}
		if err := atomicfile.Write(path+".crt", raw, 0o644); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read CA: %w", err)
	}
	certs, err := parseCerts(raw)
	if err == nil && len(certs) == 0 {
		err = errNoCert
	}
	if err != nil {
		return nil, fmt.Errorf("read CA %s.crt: %w", path, err)
	}
	return certs, nil
}

// newAuthority takes the certificate of the key out of the list, and those above it.
func newAuthority(key crypto.Signer, certs []*x509.Certificate) (*authority, error) {
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return matches(c, key) })
	if i < 0 {
		return nil, errors.New("the key is not that of the certificate")
	}
	a := &authority{cert: certs[i], key: key}
	if !a.cert.IsCA {
		return nil, errors.New("not a CA certificate")
	}
	for top := a.cert; !selfSigned(top); top = a.above[len(a.above)-1] {
		i := slices.IndexFunc(certs, func(c *x509.Certificate) bool {
			return !c.Equal(top) &&
				top.CheckSignatureFrom(c) == nil
		})
		if i < 0 || len(a.above) > maxChain {
			return nil, fmt.Errorf("the certificate of who signed %q is missing; the file has to hold all up to the root", top.Subject)
		}
		a.above = append(a.above, certs[i])
	}
	return a, nil
}

// maxChain bounds the number of certificates between a CA and its root.
const maxChain = 8

// readRotation reads what belongs to a rotation that is under way: the certificates that lead to the old roots, and
// the roots that are trusted before anything is signed below them. What a rotation that was cut off before its key
// was written has left is removed, and roots that sign by now do not count.
func (a *authority) readRotation(path string) error {
	read := func(file string) (certs []*x509.Certificate, err error) {
		raw, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err == nil {
			certs, err = parseCerts(raw)
		}
		if err != nil {
			return nil, fmt.Errorf("read CA %s: %w", file, err)
		}
		return certs, nil
	}
	old, err := read(path + "-old.crt")
	if err != nil {
		return err
	}
	if len(old) == 0 || !matches(old[0], a.key) {
		old = nil
		if err := os.Remove(path + "-old.crt"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what a rotation has left: %w", err)
		}
	}
	a.old = old
	next, err := read(path + "-next.crt")
	if err != nil {
		return err
	}
	a.next = slices.DeleteFunc(next, func(c *x509.Certificate) bool { return slices.ContainsFunc(a.roots(), c.Equal) })
	return nil
}

// commit makes the authority the one in force, in one rename.
func (a *authority) commit(path string) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	return atomicfile.Write(path+".key", append(key, encodeCerts(append([]*x509.Certificate{a.cert}, a.above...))...),
		0o600)
}

// publish writes the files that follow from the key's.
func (a *authority) publish(path string) error {
	if err := WriteIfChanged(path+".crt", a.bundle(), 0o644); err != nil {
		return err
	}
	return WriteIfChanged(path+"-signer.crt", encodeCerts([]*x509.Certificate{a.cert}), 0o644)
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(c) == nil
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
	if end := a.ends(); notAfter.After(end) {
		notAfter = end
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

// ensureKey loads the private key in file or makes one.
func ensureKey(file string) (crypto.Signer, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		key, raw, err := newKey()
		if err != nil {
			return nil, err
		}
		return key, atomicfile.Write(file, raw, 0o600)
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

// newKey makes a key and its file's content.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	raw, err := encodeKey(key)
	return key, raw, err
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	if k, ok := key.(*ecdsa.PrivateKey); ok {
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			return nil, fmt.Errorf("encode key: %w", err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
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

var errNoCert = errors.New("no certificate in PEM form")

// parseCert reads the first certificate.
func parseCert(raw []byte) (*x509.Certificate, error) {
	certs, err := parseCerts(raw)
	if err != nil {
		return nil, err
	}
	if len(certs) == 0 {
		return nil, errNoCert
	}
	return certs[0], nil
}

// parseCerts reads all certificates, and passes over what else is in the file.
func parseCerts(raw []byte) (out []*x509.Certificate, err error) {
	for {
		var b *pem.Block
		if b, raw = pem.Decode(raw); b == nil {
			return out, nil
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}

func encodeCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, encodeCert(c.Raw)...)
	}
	return out
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
