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
	all.findings.files = append(all.findings.files, path)
	if doc == nil {
		all.findings.empty = append(all.findings.empty, path)
		return nil
	}
	if doc.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: settings are lines of `key: value`", path, doc.Line)}
	}
	f := file{path: path, all: all, lines: map[string]int{}, set: map[*field]string{}}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		f.pair(doc.Content[i], doc.Content[i+1])
	}
	return f.errs
}

// file is a settings file that is being read.
type file struct {
	path  string
	all   *schema
	lines map[string]int    // by key, the line where it stands
	set   map[*field]string // by setting, the key that has set it
	errs  []error
}

// pair reads one key and its value.
func (p *file) pair(k, v *yaml.Node) {
	at := fmt.Sprintf("%s:%d: %s", p.path, k.Line, k.Value)
	fail := func(err error) { p.errs = append(p.errs, fmt.Errorf("%s: %w", at, err)) }
	name, add := strings.CutSuffix(k.Value, "+")
	e, err := p.all.lookup(name)
	if err != nil {
		fail(err)
		return
	}
	if line, dup := p.lines[k.Value]; dup {
		fail(fmt.Errorf("stands at line %d already", line))
		return
	}
	p.lines[k.Value] = k.Line
	given, err := yamlfile.Scalars(v)
	if b := bare(v); err == nil && !e.isSwitch() && b != nil && (e.field != nil || e.foreign.Effect != NoEffect) {
		err = fmt.Errorf("needs a value; if the text %s is meant, put it in quotes", b.Value)
	}
	if err == nil && add && !e.isList() {
		err = errors.New("only a list can be added to with +")
	}
	if err == nil && !e.isList() && seq(v) {
		err = errors.New("takes one value, not a list")
	}
	if err != nil {
		fail(err)
		return
	}
	values, reason, err := p.all.values(e, given)
	p.all.findings.foreign = p.all.findings.foreign || e.foreign != nil && err == nil
	switch {
	case err != nil:
		fail(err)
	case reason != "":
		p.all.unused(at, reason)
	case values != nil:
		p.apply(e.field, k.Value, add, at, values)
	}
}

// apply sets a setting to the values of a key.
func (p *file) apply(f *field, key string, add bool, at string, values []string) {
	if add {
		values = append(slices.Clone(f.texts), values...)
	} else if other, ok := p.set[f]; ok && !slices.Equal(f.texts, f.split(values)) {
		p.errs = append(p.errs, &Mistake{Key: f.key, At: at, Err: differ(other)})
		return
	}
	p.set[f] = key
	f.at, f.foreign = at, strings.TrimSuffix(key, "+") != f.key
	if f.secret && slices.ContainsFunc(values, isSecret) {
		p.all.findings.secretFiles = append(p.all.findings.secretFiles, p.path)
	}
	for _, err := range f.set(values) {
		p.errs = append(p.errs, &Mistake{Key: f.key, At: at, Err: err})
	}
}

// differ is the mistake of two names of one setting that have different values; other is the name seen first.
func differ(other string) error {
	return fmt.Errorf("this is the same setting as %s, which has another value; leave one of them out", other)
}

// bare returns a true or false without quotes in a value or list, as install.sh writes it for a flag that has no value.
func bare(v *yaml.Node) *yaml.Node {
	if v.Kind == yaml.AliasNode {
		return bare(v.Alias)
	}
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

// seq reports whether a value is a list.
func seq(v *yaml.Node) bool {
	return v.Kind == yaml.SequenceNode || v.Kind == yaml.AliasNode && seq(v.Alias)
}

// isSecret reports whether the value of a secret setting contains a secret. A URL does only if it has a password.
func isSecret(v string) bool {
	return v != "" && (!strings.Contains(v, "://") || strings.Contains(v, "@"))
}
