package pki

import (
	"cmp"
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

// WriteIfChanged writes a file atomically unless it is there already as it should be; the folder is
// made, with mode 0700, if it is missing.
func WriteIfChanged(file string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	_, err := atomicfile.WriteIfChanged(file, data, mode)
	return err
}

// Kubeconfig describes a kubeconfig file.
type Kubeconfig struct {
	Server string // URL
	// CAFile, CertFile and KeyFile are named in the file, so that a reader follows rotations and renewals, or,
	// with Embed, their content is put into it, so that the file can be copied to another machine.
	CAFile, CertFile, KeyFile string
	Embed                     bool
	// Name is that of cluster, user and context; "" means umiak.
	Name string
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
	name := cmp.Or(k.Name, "umiak")
	raw, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": cluster}},
		"users":    []any{map[string]any{"name": name, "user": user}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": name}}},
	})
	if err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return WriteIfChanged(file, raw, mode)
}
