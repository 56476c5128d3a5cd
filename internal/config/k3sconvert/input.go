package k3sconvert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// Input is what k3s is set to on a machine. The zero Input has no settings.
type Input struct {
	// Node reports that k3s runs as an agent.
	Node bool
	// Files are those that were read, in order.
	Files []string

	entries []entry // in the order in which the keys came first
}

// entry is one key of k3s with its values.
type entry struct {
	key    string
	values []string
}

// set gives a key its values, or adds them to those that it has.
func (in *Input) set(key string, values []string, add bool) {
	i := slices.IndexFunc(in.entries, func(e entry) bool { return e.key == key })
	switch {
	case i < 0:
		in.entries = append(in.entries, entry{key, values})
	case add:
		in.entries[i].values = append(in.entries[i].values, values...)
	default:
		in.entries[i].values = values
	}
}

// has reports whether a key is set.
func (in *Input) has(key string) bool {
	return slices.ContainsFunc(in.entries, func(e entry) bool { return e.key == key })
}

// ReadFolder adds config.yaml and config.yaml.d of a folder; they need not exist.
func (in *Input) ReadFolder(dir string) error { return in.ReadFile(filepath.Join(dir, "config.yaml")) }

// ReadFile adds a settings file of k3s and its drop-ins; they need not exist.
func (in *Input) ReadFile(path string) error {
	dropIns, _, err := yamlfile.Folder(path+".d", ".yaml", ".yml")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read settings of k3s: %w", err)
	}
	for _, file := range append([]string{path}, dropIns...) {
		raw, err := yamlfile.Read(file)
		if errors.Is(err, fs.ErrNotExist) && file == path {
			continue
		}
		if err != nil {
			return fmt.Errorf("read settings of k3s: %w", err)
		}
		in.Files = append(in.Files, file)
		if err := in.parse(file, raw); err != nil {
			return err
		}
	}
	return nil
}

// parse adds the keys of a file.
func (in *Input) parse(path string, raw []byte) error {
	doc, err := yamlfile.Document(raw)
	if err != nil {
		return fmt.Errorf("%s:%w", path, err)
	}
	if doc == nil {
		return nil
	}
	if doc.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: settings are lines of `key: value`", path, doc.Line)
	}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		k, v := doc.Content[i], doc.Content[i+1]
		key, add := strings.CutSuffix(k.Value, "+")
		values, err := texts(v)
		if err != nil {
			return fmt.Errorf("%s:%d: %s: %w", path, k.Line, k.Value, err)
		}
		in.set(key, values, add)
	}
	return nil
}

// texts returns the values of a scalar or a list; none for a key without a value.
func texts(v *yaml.Node) ([]string, error) {
	if v.Kind == yaml.AliasNode {
		return texts(v.Alias)
	}
	if v.Tag == "!!null" {
		return nil, nil
	}
	return yamlfile.Scalars(v)
}

// Exists reports whether a file exists.
func Exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
