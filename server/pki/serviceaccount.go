package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

// oldServiceAccountKeys are the public keys that go on verifying during a rotation.
func (p *PKI) oldServiceAccountKeys() string { return p.File("service-account-old.pub") }

// publishServiceAccount writes the file of the keys that verify: the signer's and, during a rotation, the
// one before.
func (p *PKI) publishServiceAccount(key crypto.Signer) error {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode ServiceAccount key: %w", err)
	}
	out := encodePublic(der)
	old, err := os.ReadFile(p.oldServiceAccountKeys())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	if bytes.Equal(old, out) { // a rotation that was cut off before its key was written
		old = nil
		if err := remove(p.oldServiceAccountKeys()); err != nil {
			return err
		}
	}
	next, err := os.ReadFile(p.File("service-account-next.pub"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	for _, other := range publicKeys(append(old, next...)) {
		if !bytes.Equal(other, der) {
			out = append(out, encodePublic(other)...)
		}
	}
	return WriteIfChanged(p.ServiceAccountPublicKey(), out, 0o644)
}

// publicKeys are those in PEM form, in DER form.
func publicKeys(raw []byte) (out [][]byte) {
	for b, rest := pem.Decode(raw); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == "PUBLIC KEY" {
			out = append(out, b.Bytes)
		}
	}
	return out
}

func (p *PKI) replaceServiceAccount(key crypto.Signer) error {
	pub, err := os.ReadFile(p.ServiceAccountPublicKey())
	if err != nil {
		return fmt.Errorf("read ServiceAccount key: %w", err)
	}
	raw, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(p.oldServiceAccountKeys(), pub, 0o644); err != nil {
		return err
	}
	if err := p.recordBegin(ServiceAccount); err != nil {
		return err
	}
	if err := atomicfile.Write(p.ServiceAccountKey(), raw, 0o600); err != nil {
		return err
	}
	return p.publishServiceAccount(key)
}

func (p *PKI) dropOldServiceAccount() error {
	if err := remove(p.oldServiceAccountKeys()); err != nil {
		return err
	}
	key, err := ensureKey(p.ServiceAccountKey())
	if err != nil {
		return err
	}
	return p.publishServiceAccount(key)
}
