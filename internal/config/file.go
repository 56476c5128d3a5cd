package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// loadFile reads the main settings file, which may be a pipe.
func loadFile(path string, all *schema) (errs []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, all)
}

// loadDropIn reads a drop-in, which must be a regular file.
func loadDropIn(path string, all *schema) (errs []error) {
	raw, err := yamlfile.Read(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, all)
}

// parse reads one YAML mapping of keys to scalars or lists of scalars.
func parse(path string, raw []byte, all *schema) (errs []error) {
	doc, err := yamlfile.Document(raw)
	if err != nil {
		return []error{fmt.Errorf("%s:%w", path, err)}
	}
	if doc == nil {
		return nil
	}
	if doc.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: settings are lines of `key: value`", path, doc.Line)}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		k, v := doc.Content[i], doc.Content[i+1]
		fail := func(format string, a ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s: "+format, append([]any{path, k.Line, k.Value}, a...)...))
		}
		name, add := strings.CutSuffix(k.Value, "+")
		f, err := all.lookup(name)
		if err != nil {
			fail("%w", err)
			continue
		}
		if at, dup := seen[k.Value]; dup {
			fail("stands at line %d already", at)
			continue
		}
		seen[k.Value] = k.Line
		values, err := scalars(v)
		if b := bare(v); err == nil && !f.isBool() && b != nil {
			err = fmt.Errorf("needs a value; if the text %s is meant, put it in quotes", b.Value)
		}
		if err != nil {
			fail("%w", err)
			continue
		}
		switch {
		case add && !f.isList():
			fail("only a list can be added to with +")
			continue
		case add:
			values = append(slices.Clone(f.texts), values...)
		case !f.isList() && v.Kind == yaml.SequenceNode:
			fail("takes one value, not a list")
			continue
		}
		f.found = true
		for _, err := range f.set(values) {
			errs = append(errs, &Mistake{Key: f.key, At: fmt.Sprintf("%s:%d: %s", path, k.Line, k.Value), Err: err})
		}
	}
	return errs
}

// scalars returns the values of a scalar or of a list of scalars.
func scalars(v *yaml.Node) ([]string, error) {
	switch v.Kind {
	case yaml.AliasNode:
		return scalars(v.Alias)
	case yaml.ScalarNode:
		if v.Tag == "!!null" {
			return nil, errors.New("has no value")
		}
		return []string{v.Value}, nil
	case yaml.SequenceNode:
		out := []string{}
		for _, e := range v.Content {
			if e.Kind != yaml.ScalarNode || e.Tag == "!!null" {
				return nil, fmt.Errorf("item at line %d is not a plain value", e.Line)
			}
			out = append(out, e.Value)
		}
		return out, nil
	}
	return nil, errors.New("takes a value or a list, not a mapping")
}

// bare returns a true or false without quotes in a value or list, as install.sh writes it for a flag that has no value.
func bare(v *yaml.Node) *yaml.Node {
	if v.Tag == "!!bool" {
		return v
	}
	for _, e := range v.Content {
		if v.Kind == yaml.SequenceNode && e.Tag == "!!bool" {
			return e
		}
	}
	return nil
}
