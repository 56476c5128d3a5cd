package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"
)

// DefaultFile is read when --config is not given; it need not exist.
const DefaultFile = "/etc/umiak/config.yaml"

const envPrefix = "UMIAK_"

// field is one setting: where its values go and what the tags say.
type field struct {
	key, def, usage string
	secret          bool
	dst             []reflect.Value
}

// Flags returns the command line flags of the settings in the structs that dst points to, sorted by
// name, and --config. It panics on a malformed struct, which a test of any command finds.
func Flags(dst ...any) []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, Usage: "settings file; FILE.d/*.yaml are read after it",
		Value: DefaultFile, EnvVars: []string{envPrefix + "CONFIG"},
	}}
	for _, f := range collect(dst) {
		usage, env := f.usage, []string{envOf(f.key)}
		switch f.dst[0].Interface().(type) {
		case bool:
			flags = append(flags, &cli.BoolFlag{Name: f.key, Usage: usage, EnvVars: env, Value: f.def == "true"})
		case []string:
			flags = append(flags, &cli.StringSliceFlag{Name: f.key, Usage: usage + " (may be repeated)", EnvVars: env, DefaultText: f.def})
		default: // numbers and durations are parsed by us, so that their errors read as all others
			flags = append(flags, &cli.StringFlag{Name: f.key, Usage: usage, EnvVars: env, DefaultText: f.def})
		}
	}
	slices.SortFunc(flags, func(a, b cli.Flag) int { return strings.Compare(a.Names()[0], b.Names()[0]) })
	return flags
}

// Defaults fills the structs that dst points to with what counts where nothing is set.
func Defaults(dst ...any) { defaults(collect(dst)) }

func defaults(fields []*field) {
	for _, f := range fields {
		if f.def != "" {
			if err := f.set(splitList(f, f.def)); err != nil {
				panic(fmt.Sprintf("default of %s: %v", f.key, err))
			}
		}
	}
}

// Load fills the structs that dst points to. The error joins everything that is wrong.
func Load(c *cli.Context, dst ...any) error {
	fields := collect(dst)
	defaults(fields)
	byKey := map[string]*field{}
	var errs []error
	for _, f := range fields {
		byKey[f.key] = f
	}
	files, err := files(c.String("config"), c.IsSet("config"))
	errs = append(errs, err)
	for _, file := range files {
		errs = append(errs, loadFile(file, byKey)...)
	}
	for _, f := range fields {
		if !c.IsSet(f.key) {
			continue
		}
		var values []string
		switch f.dst[0].Interface().(type) {
		case bool:
			values = []string{strconv.FormatBool(c.Bool(f.key))}
		case []string:
			values = c.StringSlice(f.key)
		default:
			values = []string{c.String(f.key)}
		}
		if err := f.set(values); err != nil {
			errs = append(errs, fmt.Errorf("--%s (or %s): %w", f.key, envOf(f.key), err))
		}
	}
	return errors.Join(errs...)
}

func collect(dst []any) []*field {
	var out []*field
	byKey := map[string]*field{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		for i := range v.NumField() {
			sf, fv := v.Type().Field(i), v.Field(i)
			key, tagged := sf.Tag.Lookup("key")
			if !tagged {
				if fv.Kind() == reflect.Struct && sf.IsExported() {
					walk(fv)
				}
				continue
			}
			f := byKey[key]
			if f == nil {
				f = &field{key: key, def: sf.Tag.Get("default"), usage: sf.Tag.Get("usage"), secret: sf.Tag.Get("secret") == "true"}
				byKey[key] = f
				out = append(out, f)
			} else if f.dst[0].Type() != fv.Type() || f.def != sf.Tag.Get("default") {
				panic(fmt.Sprintf("key %q is defined twice and not alike", key))
			}
			f.dst = append(f.dst, fv)
		}
	}
	for _, d := range dst {
		walk(reflect.ValueOf(d).Elem())
	}
	return out
}

// set parses values into every destination.
func (f *field) set(values []string) error {
	one := func() string {
		if len(values) == 0 {
			return ""
		}
		return values[len(values)-1]
	}
	var v any
	switch f.dst[0].Interface().(type) {
	case string:
		v = one()
	case []string:
		v = slices.Clone(values)
	case bool:
		b, err := strconv.ParseBool(one())
		if err != nil {
			return fmt.Errorf("%s is not true or false", f.show(one()))
		}
		v = b
	case int:
		n, err := strconv.Atoi(one())
		if err != nil {
			return fmt.Errorf("%s is not a whole number", f.show(one()))
		}
		v = n
	case time.Duration:
		d, err := time.ParseDuration(one())
		if err != nil {
			return fmt.Errorf("%s is not a duration such as 90s or 12h", f.show(one()))
		}
		v = d
	default:
		panic(fmt.Sprintf("key %s has type %s, which config does not know", f.key, f.dst[0].Type()))
	}
	for _, d := range f.dst {
		d.Set(reflect.ValueOf(v))
	}
	return nil
}

// show quotes a value for an error, unless it is a secret.
func (f *field) show(v string) string {
	if f.secret {
		return "the value"
	}
	return strconv.Quote(v)
}

func splitList(f *field, s string) []string {
	if _, list := f.dst[0].Interface().([]string); list {
		return strings.Split(s, ",")
	}
	return []string{s}
}

func envOf(key string) string { return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")) }

// files lists what to read in order. Only a file that was asked for must exist.
func files(main string, asked bool) ([]string, error) {
	var out []string
	switch _, err := os.Stat(main); {
	case err == nil:
		out = append(out, main)
	case asked || !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read settings: %w", err)
	}
	dropins, err := os.ReadDir(main + ".d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	for _, e := range dropins { // sorted by name
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			out = append(out, filepath.Join(main+".d", e.Name()))
		}
	}
	return out, nil
}

// Check says what is wrong with a file of settings for the structs that dst points to, which it fills. Nothing but the file
// is read.
func Check(path string, dst ...any) error {
	fields := collect(dst)
	defaults(fields)
	byKey := map[string]*field{}
	for _, f := range fields {
		byKey[f.key] = f
	}
	return errors.Join(loadFile(path, byKey)...)
}

func loadFile(path string, byKey map[string]*field) (errs []error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return []error{fmt.Errorf("read settings: %w", err)}
	}
	return parse(path, raw, byKey)
}

// parse reads one YAML mapping of keys to scalars or lists of scalars.
func parse(path string, raw []byte, byKey map[string]*field) (errs []error) {
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&doc); err != nil {
		if len(bytes.TrimSpace(raw)) == 0 || err.Error() == "EOF" {
			return nil // nothing in it, or only comments
		}
		return []error{fmt.Errorf("%s: %w", path, err)}
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	m := doc.Content[0]
	if m.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: settings are lines of `key: value`", path, m.Line)}
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		k, v := m.Content[i], m.Content[i+1]
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

// nearest suggests the known key with the fewest edits, if there is one that is near.
func nearest(name string, byKey map[string]*field) string {
	best, dist := "", 1+max(2, len(name)/3)
	for k := range byKey {
		if d := edits(name, k); d < dist || d == dist && k < best {
			best, dist = k, d
		}
	}
	if best == "" {
		return "; `--help` lists them"
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cur := row[j+1]
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(row[j+1]+1, row[j]+1, prev+cost)
			prev = cur
		}
	}
	return row[len(b)]
}
