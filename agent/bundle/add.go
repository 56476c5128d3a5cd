package bundle

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/yaml"
	syaml "sigs.k8s.io/yaml"
)

const (
	maxManifest = 16 << 20 // the limit of servers
	maxConfig   = 1 << 20
)

// settings adds the settings files, which the caller has validated.
func (b *builder) settings(context.Context) error {
	for name, from := range map[string]string{"server.yaml": b.cfg.ServerConfig, "agent.yaml": b.cfg.AgentConfig} {
		if from == "" {
			continue
		}
		raw, err := readFile(from, maxConfig)
		if err != nil {
			return fmt.Errorf("read settings: %w", err)
		}
		b.planned.Config = append(b.planned.Config, name)
		if err := os.WriteFile(filepath.Join(b.stage, configDir, name), raw, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// manifests adds manifest files and, from folders, the files that a server would apply, with their subfolders.
func (b *builder) manifests(context.Context) error {
	taken := map[string]string{}
	take := func(name, from string) error {
		if !goodName(manifestsDir + "/" + name) {
			return fmt.Errorf("%s: a manifest's name may contain only letters, digits and . _ + -", from)
		}
		if before, ok := taken[name]; ok {
			return fmt.Errorf("manifests %s and %s would have the same name in the bundle, %s", before, from, name)
		}
		taken[name] = from
		raw, err := readFile(from, maxManifest)
		if err != nil {
			return fmt.Errorf("read manifest: %w", err)
		}
		if err := checkManifest(raw); err != nil {
			return fmt.Errorf("manifest %s: %w", from, err)
		}
		b.planned.Manifests = append(b.planned.Manifests, name)
		to := filepath.Join(b.stage, manifestsDir, name)
		return errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, raw, 0o600))
	}
	for _, from := range b.cfg.Manifests {
		info, err := os.Stat(from)
		if err != nil {
			return fmt.Errorf("read manifest: %w", err)
		}
		if !info.IsDir() {
			if !isManifest(from) {
				return fmt.Errorf("manifest %s: its name does not end with .yaml, .yml or .json", from)
			}
			if err := take(filepath.Base(from), from); err != nil {
				return err
			}
			continue
		}
		before := len(taken)
		err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			hidden := strings.HasPrefix(d.Name(), ".")
			if d.IsDir() && hidden && p != from {
				return fs.SkipDir
			}
			if d.IsDir() || hidden || !isManifest(p) {
				return nil
			}
			name, err := filepath.Rel(from, p)
			if err != nil {
				return err
			}
			return take(filepath.ToSlash(name), p)
		})
		if err != nil {
			return err
		}
		if len(taken) == before {
			return fmt.Errorf("no manifest in %s", from)
		}
	}
	return nil
}

func isManifest(file string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file))
}

// checkManifest returns an error unless the text contains Kubernetes objects. Only a cluster can validate them.
func checkManifest(raw []byte) error {
	docs, objects := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw))), 0
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		var o *struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
		}
		if err := syaml.Unmarshal(doc, &o); err != nil {
			return fmt.Errorf("document %d: %w", n, err)
		}
		if o == nil {
			continue // only comments
		}
		if o.APIVersion == "" || o.Kind == "" {
			return fmt.Errorf("document %d is not an object: apiVersion or kind is missing", n)
		}
		objects++
	}
	if objects == 0 {
		return errors.New("it contains no object")
	}
	return nil
}
