package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/umiak-io/umiak/internal/certfiles"
)

// brought is an authority that a user provides in a folder.
type brought struct {
	key   crypto.Signer
	certs []*x509.Certificate
}

// chosen are the names to rotate, in order, and what the user brings for them.
func (p *PKI) chosen(names []string, from string) ([]string, map[string]brought, error) {
	for _, n := range names {
		if !slices.Contains(Rotatable(), n) {
			return nil, nil, unknown(n)
		}
	}
	all := len(names) == 0
	var out []string
	pairs := map[string]brought{}
	for _, n := range Rotatable() {
		if !all && !slices.Contains(names, n) {
			continue
		}
		if from != "" {
			b, err := readBrought(from, n, p.cfg.Now())
			if all && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", n, err)
			}
			pairs[n] = *b
		}
		out = append(out, n)
	}
	if len(out) == 0 {
		return nil, nil, fmt.Errorf("there is no pair NAME.crt and NAME.key in %s, for a NAME of %s", from,
			strings.Join(Rotatable(), ", "))
	}
	return out, pairs, nil
}

// minLifetime bounds the remaining lifetime of a CA that a user provides.
const minLifetime = 30 * 24 * time.Hour

// readBrought reads and checks a pair.
func readBrought(dir, name string, now time.Time) (*brought, error) {
	raw, err := certfiles.ReadSmall(filepath.Join(dir, name+".key"), maxBrought)
	if err != nil {
		return nil, err
	}
	b := &brought{}
	if b.key, err = parseKey(raw); err != nil {
		return nil, fmt.Errorf("read %s.key: %w", name, err)
	}
	if k, ok := b.key.(*rsa.PrivateKey); ok && k.N.BitLen() < 2048 {
		return nil, fmt.Errorf("%s.key has %d bits; an RSA key needs 2048 or more", name, k.N.BitLen())
	}
	if name == ServiceAccount {
		switch b.key.(type) {
		case *rsa.PrivateKey, *ecdsa.PrivateKey:
			return b, nil
		}
		return nil, fmt.Errorf("%s.key: tokens are signed with RSA or ECDSA keys only", name)
	}
	if raw, err = certfiles.ReadSmall(filepath.Join(dir, name+".crt"), maxBrought); err != nil {
		return nil, err
	}
	if b.certs, err = parseCerts(raw); err != nil {
		return nil, fmt.Errorf("read %s.crt: %w", name, err)
	}
	a, err := newAuthority(b.key, b.certs)
	if err != nil {
		return nil, fmt.Errorf("%s.crt and %s.key: %w", name, name, err)
	}
	for _, c := range append([]*x509.Certificate{a.cert}, a.above...) {
		switch {
		case !c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
			return nil, fmt.Errorf("%s.crt: %q may not sign certificates", name, c.Subject)
		case now.Before(c.NotBefore):
			return nil, fmt.Errorf("%s.crt: %q is valid from %s on only", name, c.Subject,
				c.NotBefore.Format(time.DateTime))
		case c.NotAfter.Before(now.Add(minLifetime)):
			return nil, fmt.Errorf("%s.crt: %q ends on %s; it has to live 30 days at least", name, c.Subject,
				c.NotAfter.Format(time.DateOnly))
		}
	}
	return b, nil
}

const maxBrought = 256 << 10

// successor makes the authority that takes over, and makes sure that both sides of the overlap will take
// what it signs.
func (p *PKI) successor(name CA, b brought) (*authority, error) {
	now := p.ca(name)
	var a *authority
	var err error
	if b.key != nil {
		a, err = newAuthority(b.key, b.certs)
	} else {
		a, err = p.makeAuthority(name)
	}
	if err != nil {
		return nil, err
	}
	if p.cfg.Now().After(now.ends()) {
		return a, nil // nobody can be led there by one that has ended
	}
	cross, err := now.certify(a)
	if err != nil {
		return nil, err
	}
	a.old = append([]*x509.Certificate{cross, now.cert}, now.above...)
	return a, a.verify(p.base(), name)
}

// makeAuthority makes a self-signed one. Its name differs from that of the one before: some verifiers look
// an issuer up by name alone.
func (p *PKI) makeAuthority(name CA) (*authority, error) {
	key, _, err := newKey()
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	sum := sha256.Sum256(pub)
	raw, err := selfSign(key, "umiak-"+string(name)+"-"+hex.EncodeToString(sum[:4]), p.base().Add(p.cfg.CALifetime))
	if err != nil {
		return nil, err
	}
	cert, err := parseCert(raw)
	return &authority{cert: cert, key: key}, err
}

// certify gives the key of another authority a certificate from this one.
func (a *authority) certify(other *authority) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	end := a.ends()
	if e := other.ends(); e.Before(end) {
		end = e
	}
	t := &x509.Certificate{
		SerialNumber: serial, RawSubject: other.cert.RawSubject, SubjectKeyId: other.cert.SubjectKeyId,
		NotBefore: notBefore, NotAfter: end.UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, other.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certify the new authority by the old one: %w", err)
	}
	return x509.ParseCertificate(der)
}

// verify signs a leaf and has it verified by each root alone.
func (a *authority) verify(now time.Time, name CA) error {
	key, _, err := newKey()
	if err != nil {
		return err
	}
	raw, err := a.sign(Leaf{CommonName: "test", Server: true, DNSNames: []string{"kubernetes"}}, key.Public(),
		now.Add(time.Hour))
	if err != nil {
		return err
	}
	leaf, err := parseCert(raw)
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(a.chain(false))
	for _, root := range a.roots() {
		roots := x509.NewCertPool()
		roots.AddCert(root)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "kubernetes",
			CurrentTime: now}); err != nil {
			return fmt.Errorf("who trusts %q would not take what the new %s signs (does a certificate limit the length of its path, or names?): %w", root.Subject, name, err)
		}
	}
	return nil
}

// distinct refuses keys that are in use already: an authority is not to be taken for another.
func (p *PKI) distinct(next map[CA]*authority, sa crypto.Signer) error {
	seen := map[string]string{}
	add := func(name string, key crypto.Signer) error {
		pub, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("%s: encode key: %w", name, err)
		}
		if other, ok := seen[string(pub)]; ok {
			return fmt.Errorf("%s has the key of %s: each needs one of its own", name, other)
		}
		seen[string(pub)] = name
		return nil
	}
	for _, n := range authorities {
		if err := add("the present "+string(n), p.ca(n).key); err != nil {
			return err
		}
	}
	for _, n := range authorities {
		if a := next[n]; a != nil {
			if err := add("the new "+string(n), a.key); err != nil {
				return err
			}
		}
	}
	if sa != nil {
		return add("the new "+ServiceAccount, sa)
	}
	return nil
}
