package config

import (
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

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// DefaultFile is read when --config is not given; it need not exist.
const DefaultFile = "/etc/umiak/config.yaml"

const envPrefix = "UMIAK_"

// Source is where the value of a setting comes from. A later one wins over those before it.
type Source int

// The sources in the order of their precedence.
const (
	FromDefault     Source = iota
	FromFile               // the settings file and its drop-ins
	FromService            // the environment file of the installed service
	FromEnvironment        // a variable of this process
	FromFlag
)

// field is one setting: where its values go and what the tags say.
type field struct {
	key, def, usage string
	secret          bool // the value is one
	secretFile      bool // the file that it names holds one
	dst             []reflect.Value
	found           bool // in a file
}

func (f *field) isBool() bool { _, ok := f.dst[0].Interface().(bool); return ok }
func (f *field) isList() bool { _, ok := f.dst[0].Interface().([]string); return ok }

// verbatim reports whether values are passed on to a component: commas in them are the component's, not separators.
func (f *field) verbatim() bool { return strings.HasSuffix(f.key, "-arg") }

// Flags returns the command line flags of the settings in the structs that dst points to, sorted by
// name, and --config. It panics on a malformed struct, which a test of any command finds.
func Flags(dst ...any) []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, Usage: "settings file; FILE.d/*.yaml are read after it",
		Value: DefaultFile, EnvVars: []string{envPrefix + "CONFIG"},
	}}
	for _, f := range collect(dst) {
		flags = append(flags, &settingFlag{field: f})
	}
	slices.SortFunc(flags, func(a, b cli.Flag) int { return strings.Compare(a.Names()[0], b.Names()[0]) })
	return flags
}

// Defaults fills the structs that dst points to with what counts where nothing is set.
func Defaults(dst ...any) { defaults(collect(dst)) }

func defaults(fields []*field) {
	for _, f := range fields {
		if f.def != "" {
			if err := f.set([]string{f.def}); err != nil {
				panic(fmt.Sprintf("default of %s: %v", f.key, err))
			}
		}
	}
}

// Settings says where the values came from that Load has filled in.
type Settings struct {
	// File is the settings file, whether it exists or not.
	File    string
	sources map[string]Source
}

// Source returns where the value of a key comes from.
func (s Settings) Source(key string) Source { return s.sources[key] }

// Load fills the structs that dst points to, for a process that runs with these settings. The error joins everything that
// is wrong.
func Load(c *cli.Context, dst ...any) error {
	_, err := loadAll(c, false, dst)
	return err
}

// LoadInstalled is Load for commands that look at the service of this machine: the variables that install.sh has put into the
// service's environment (ServiceEnvironment, beside the settings file) count as they do for the service.
func LoadInstalled(c *cli.Context, dst ...any) (Settings, error) { return loadAll(c, true, dst) }

func loadAll(c *cli.Context, installed bool, dst []any) (Settings, error) {
	fields := collect(dst)
	defaults(fields)
	byKey := index(fields)
	main, asked := mainFile(c)
	s := Settings{File: main, sources: map[string]Source{}}
	var errs []error
	found, err := find(main, asked)
	errs = append(errs, err)
	for _, file := range found.main {
		errs = append(errs, loadFile(file, byKey)...)
	}
	for _, file := range found.dropIns {
		errs = append(errs, loadDropIn(file, byKey)...)
	}
	for _, f := range fields {
		if f.found {
			s.sources[f.key] = FromFile
		}
	}
	var service map[string]string
	if installed {
		service, err = ServiceEnvironment(filepath.Dir(main))
		errs = append(errs, err)
	}
	for _, f := range fields {
		name := envOf(f.key)
		var values []string
		var from Source
		var where string
		if v, ok := flagOf(c, f.key); ok {
			if values, ok = v.([]string); !ok {
				continue // a flag of the command's own that happens to have the name
			}
			from, where = FromFlag, "--"+f.key
		} else if v := os.Getenv(name); v != "" {
			from, where, values = FromEnvironment, name, f.lines(v)
		} else if v := service[name]; v != "" {
			from, where, values = FromService, filepath.Join(filepath.Dir(main), serviceEnvironment)+": "+name, f.lines(v)
		} else {
			continue
		}
		s.sources[f.key] = from
		if err := f.set(values); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
	}
	return s, errors.Join(errs...)
}

// flagOf returns the value of a flag that was given, to the command or to one above it.
func flagOf(c *cli.Context, name string) (any, bool) {
	for _, at := range c.Lineage() {
		if at.Command != nil && slices.Contains(at.LocalFlagNames(), name) {
			return at.Value(name), true
		}
	}
	return nil, false
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
				f = &field{key: key, def: sf.Tag.Get("default"), usage: sf.Tag.Get("usage"), secret: sf.Tag.Get("secret") == "true", secretFile: sf.Tag.Get("secret") == "file"}
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

func index(fields []*field) map[string]*field {
	byKey := map[string]*field{}
	for _, f := range fields {
		byKey[f.key] = f
	}
	return byKey
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
		v = f.items(values)
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

// items splits the values of a list at commas, whatever their source.
func (f *field) items(values []string) []string {
	if f.verbatim() {
		return slices.Clone(values)
	}
	out := []string{}
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			if item = strings.TrimSpace(item); item != "" {
				out = append(out, item)
			}
		}
	}
	return out
}

// lines returns the values in an environment variable: one, or one a line for flags of components, whose commas are their own.
func (f *field) lines(v string) []string {
	if !f.verbatim() {
		return []string{v}
	}
	var out []string
	for line := range strings.Lines(v) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// show quotes a value for an error, unless it is a secret.
func (f *field) show(v string) string {
	if f.secret {
		return "the value"
	}
	return strconv.Quote(v)
}

func envOf(key string) string { return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")) }

// files are what to read of settings: the file that the user names, where it exists, and the drop-ins after it.
type files struct {
	main, dropIns []string
	passedOver    []string // files in the folder of drop-ins that look as if they were read
}

// find lists what to read in order. Only a file that was asked for must exist.
func find(main string, asked bool) (out files, err error) {
	switch _, err := os.Stat(main); {
	case err == nil:
		out.main = []string{main}
	case asked || !errors.Is(err, fs.ErrNotExist):
		return files{}, fmt.Errorf("read settings: %w", err)
	}
	out.dropIns, out.passedOver, err = yamlfile.Folder(main+".d", ".yaml", ".yml")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return files{}, fmt.Errorf("read settings: %w", err)
	}
	return out, nil
}

// mainFile is the file of settings that a flag or a variable names, or the default.
func mainFile(c *cli.Context) (path string, asked bool) {
	path = DefaultFile
	if v := os.Getenv(envPrefix + "CONFIG"); v != "" {
		path, asked = v, true
	}
	for _, name := range []string{"config", "c"} {
		if v, ok := flagOf(c, name); ok {
			return fmt.Sprint(v), true
		}
	}
	return path, asked
}

// Check returns what is wrong with a file of settings for the structs that dst points to, which it fills. Nothing but the file
// is read.
func Check(path string, dst ...any) error {
	fields := collect(dst)
	defaults(fields)
	return errors.Join(loadFile(path, index(fields))...)
}
