package release

import (
	"compress/gzip"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Maker makes releases that are signed with one key.
type Maker struct {
	installer string
	key       *rsa.PrivateKey
	pub       []byte // in PEM
}

// NewMaker takes the installer of a checkout.
func NewMaker(checkout string) (*Maker, error) {
	raw, err := os.ReadFile(filepath.Join(checkout, "install.sh"))
	if err != nil {
		return nil, err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Maker{installer: string(raw), key: key,
		pub: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}, nil
}

// Installer is install.sh as it belongs to a version.
func (m *Maker) Installer(version string) (string, error) {
	s := strings.Replace(m.installer, "UMIAK_RELEASE_VERSION=''", "UMIAK_RELEASE_VERSION='"+version+"'", 1)
	s = strings.Replace(s, "\nRELEASE_KEY=''\n", "\nRELEASE_KEY='"+strings.TrimSpace(string(m.pub))+"'\n", 1)
	if !strings.Contains(s, version) || !strings.Contains(s, "BEGIN PUBLIC KEY") {
		return "", errors.New("install.sh has no place for the version or for the key")
	}
	return s, nil
}

// Make writes a release of programs, from name to content, to dir/version.
func (m *Maker) Make(dir, version string, programs map[string]io.Reader) error {
	dir = filepath.Join(dir, version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var sums []string
	for name, r := range programs {
		name += "-linux-" + runtime.GOARCH
		f, err := os.Create(filepath.Join(dir, name+".gz"))
		if err != nil {
			return err
		}
		packed, plain := sha256.New(), sha256.New()
		z, err := gzip.NewWriterLevel(io.MultiWriter(f, packed), gzip.BestSpeed)
		if err == nil {
			_, err = io.Copy(io.MultiWriter(z, plain), r)
		}
		if err = errors.Join(err, z.Close(), f.Close()); err != nil {
			return err
		}
		sums = append(sums, fmt.Sprintf("%x  %s\n", plain.Sum(nil), name),
			fmt.Sprintf("%x  %s\n", packed.Sum(nil), name+".gz"))
	}
	script, err := m.Installer(version)
	sums = append(sums, fmt.Sprintf("%x  install.sh\n", sha256.Sum256([]byte(script))))
	slices.Sort(sums)
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "install.sh"), []byte(script), 0o755),
		m.Sign(dir, strings.Join(sums, "")))
}

// Sign writes the list of sums and its signature.
func (m *Maker) Sign(dir, sums string) error {
	hash := sha256.Sum256([]byte(sums))
	sig, err := rsa.SignPKCS1v15(nil, m.key, crypto.SHA256, hash[:])
	return errors.Join(err, os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums), 0o644),
		os.WriteFile(filepath.Join(dir, "SHA256SUMS.sig"), sig, 0o644))
}
