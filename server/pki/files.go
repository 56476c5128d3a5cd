package pki

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/internal/atomicfile"
)

func encodePublic(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// writeIfChanged spares the flash a write where the file has its content and mode already.
func writeIfChanged(file string, data []byte, mode fs.FileMode) error {
	old, err := os.ReadFile(file)
	if err == nil && bytes.Equal(old, data) {
		if fi, err := os.Stat(file); err == nil && fi.Mode().Perm() == mode {
			return nil
		}
	}
	return atomicfile.Write(file, data, mode)
}

// WriteIfChanged writes a file atomically unless it is there already as it should be; the folder is
// made, with mode 0700, if it is missing.
func WriteIfChanged(file string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	return writeIfChanged(file, data, mode)
}

// Kubeconfig describes a kubeconfig file.
type Kubeconfig struct {
	Server string // URL
	// CAFile, CertFile and KeyFile are named in the file, so that a reader follows rotations and renewals, or,
	// with Embed, their content is put into it, so that the file can be copied to another machine.
	CAFile, CertFile, KeyFile string
	Embed                     bool
}

// Write writes the kubeconfig with the mode.
func (k Kubeconfig) Write(file string, mode fs.FileMode) error {
	user := map[string]any{"client-certificate": k.CertFile, "client-key": k.KeyFile}
	cluster := map[string]any{"server": k.Server, "certificate-authority": k.CAFile}
	if k.Embed {
		ca, errA := os.ReadFile(k.CAFile)
		crt, errC := os.ReadFile(k.CertFile)
		key, errK := os.ReadFile(k.KeyFile)
		if err := errors.Join(errA, errC, errK); err != nil {
			return fmt.Errorf("write kubeconfig: %w", err)
		}
		user = map[string]any{"client-certificate-data": crt, "client-key-data": key}
		cluster = map[string]any{"server": k.Server, "certificate-authority-data": ca}
	}
	raw, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "umiak",
		"clusters": []any{map[string]any{"name": "umiak", "cluster": cluster}},
		"users":    []any{map[string]any{"name": "umiak", "user": user}},
		"contexts": []any{map[string]any{"name": "umiak", "context": map[string]any{"cluster": "umiak", "user": "umiak"}}},
	})
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return WriteIfChanged(file, raw, mode)
}

// EnsureEncryptionConfig writes the configuration with which the API server encrypts Secrets and
// ConfigMaps in the datastore, with a new key, unless the file is there.
//
// The cipher is secretbox (XSalsa20 and Poly1305): it is authenticated, which aescbc is not; its random
// nonces are long enough never to repeat, where aesgcm must have a new key every 200,000 writes; and it
// is fast on boards whose processors lack AES instructions.
func EnsureEncryptionConfig(file string) error {
	_, err := os.Stat(file)
	if err == nil {
		return os.Chmod(file, 0o600)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read encryption config: %w", err)
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("make encryption key: %w", err)
	}
	raw, err := yaml.Marshal(map[string]any{
		"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
		"resources": []any{map[string]any{
			"resources": []any{"secrets", "configmaps"},
			"providers": []any{
				map[string]any{"secretbox": map[string]any{"keys": []any{map[string]any{"name": "key1", "secret": base64.StdEncoding.EncodeToString(key)}}}},
				map[string]any{"identity": map[string]any{}},
			},
		}},
	})
	if err != nil {
		return fmt.Errorf("make encryption config: %w", err)
	}
	return WriteIfChanged(file, raw, 0o600)
}
