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

// loadFile reads the file of settings that the user names, which may be a pipe.
func loadFile(path string, byKey map[string]*field) (errs []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, byKey)
}

// loadDropIn reads a file that merely lies in the folder of drop-ins.
func loadDropIn(path string, byKey map[string]*field) (errs []error) {
	raw, err := yamlfile.Read(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, byKey)
}

// parse reads one YAML mapping of keys to scalars or lists of scalars.
func parse(path string, raw []byte, byKey map[string]*field) (errs []error) {
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
		f, ok := byKey[name]
		if !ok {
			fail("no such setting%s", nearest(name, byKey))
			continue
		}
		if at, dup := seen[k.Value]; dup {
			fail("stands at line %d already", at)
			continue
		}
		seen[k.Value] = k.Line
		values, err := scalars(v)
		if err != nil {
			fail("%w", err)
			continue
		}
		old, list := f.dst[0].Interface().([]string)
		switch {
		case add && !list:
			fail("only a list can be added to with +")
			continue
		case add:
			values = append(slices.Clone(old), values...)
		case !list && v.Kind == yaml.SequenceNode:
			fail("takes one value, not a list")
			continue
		}
		f.found = true
		if err := f.set(values); err != nil {
			fail("%w", err)
		}
	}
	return errs
}

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

// nearest suggests the known key that is nearest, if one is near.
func nearest(name string, byKey map[string]*field) string {
	var known []string
	for k := range byKey {
		known = append(known, k)
	}
	if best := Nearest(name, known); best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return "; `--help` lists them"
}
