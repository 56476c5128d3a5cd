package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

func loadFile(path string, byKey map[string]*field) (errs []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, byKey)
}

// parse reads one YAML mapping of keys to scalars or lists of scalars.
func parse(path string, raw []byte, byKey map[string]*field) (errs []error) {
	doc, err := document(raw)
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

// document returns the only document of a file, nil if there is nothing in it. Its errors begin with the line.
func document(raw []byte) (*yaml.Node, error) {
	raw = bytes.TrimPrefix(raw, []byte("\ufeff")) // editors on Windows write it
	if line, ok := notText(raw); ok {
		return nil, fmt.Errorf("%d: this is not text in UTF-8; save the file as UTF-8", line)
	}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	var only *yaml.Node
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return only, nil
		case err != nil:
			return nil, syntax(err, raw)
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue
		}
		if only != nil {
			return nil, fmt.Errorf("%d: a second document begins here, which nothing would read; remove the line `---` above it", doc.Content[0].Line)
		}
		only = doc.Content[0]
	}
}

// notText returns the first line that holds bytes which are no UTF-8, or NUL.
func notText(raw []byte) (int, bool) {
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		return 1 + bytes.Count(raw[:i], []byte("\n")), true
	}
	if utf8.Valid(raw) {
		return 0, false
	}
	line := 1
	for len(raw) > 0 {
		r, n := utf8.DecodeRune(raw)
		if r == utf8.RuneError && n == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		raw = raw[n:]
	}
	return line, true
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+)(?:, column \d+)?: )?`)

// syntax words an error of the YAML library, so that the line comes first. The library does not always say the line.
func syntax(err error, raw []byte) error {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	// The library blames the line before or after the tab.
	for i, l := range strings.Split(string(raw), "\n") {
		if indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))]; strings.Contains(indent, "\t") && strings.TrimSpace(l) != "" && i+1 >= line-1 && i+1 <= line+1 {
			return fmt.Errorf("%d: a tab begins this line; YAML is indented with spaces", i+1)
		}
	}
	return fmt.Errorf("%d: this is not YAML: %s", line, strings.ReplaceAll(text, "\n", "; "))
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
