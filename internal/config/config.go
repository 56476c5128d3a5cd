package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// DefaultFile is the settings file without --config. It need not exist.
const DefaultFile = "/etc/umiak/config.yaml"

const envPrefix = "UMIAK_"

// Source is where the value of a setting comes from.
type Source int

// The sources. A later one takes precedence over those before it.
const (
	FromDefault     Source = iota
	FromFile               // the settings file and its drop-ins
	FromService            // the environment file of the installed service
	FromEnvironment        // a variable of this process
	FromFlag
)

// Flags returns the command line flags of the settings in the structs that dst points to, sorted by
// name, and --config. It panics on a malformed struct, which a test of any command finds.
func Flags(dst ...any) []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, Usage: "settings file; FILE.d/*.yaml are read after it",
		Value: DefaultFile, EnvVars: []string{envPrefix + "CONFIG"},
	}}
	for _, f := range collect(dst).fields {
		flags = append(flags, &settingFlag{field: f})
	}
	slices.SortFunc(flags, func(a, b cli.Flag) int { return strings.Compare(a.Names()[0], b.Names()[0]) })
	return flags
}

// Defaults fills the structs that dst points to with the default of each setting.
func Defaults(dst ...any) { collect(dst).setDefaults() }

// Settings describes where the values of loaded settings come from.
type Settings struct {
	// File is the settings file, whether it exists or not.
	File    string
	sources map[string]Source
}

// Source returns where the value of a key comes from.
func (s Settings) Source(key string) Source { return s.sources[key] }

// Load fills the structs that dst points to, for a process that runs with these settings. The error joins all mistakes.
func Load(c *cli.Context, dst ...any) error {
	_, err := loadAll(c, false, dst)
	return err
}

// LoadInstalled is Load for commands that inspect the service of this machine: it also applies the variables that
// install.sh has put into the environment of the service (ServiceEnvironment, beside the settings file).
func LoadInstalled(c *cli.Context, dst ...any) (Settings, error) { return loadAll(c, true, dst) }

func loadAll(c *cli.Context, installed bool, dst []any) (Settings, error) {
	all := collect(dst)
	all.setDefaults()
	main, asked := mainFile(c)
	s := Settings{File: main, sources: map[string]Source{}}
	var errs []error
	found, err := find(main, asked)
	errs = append(errs, err)
	for _, file := range found.main {
		errs = append(errs, loadFile(file, all)...)
	}
	for _, file := range found.dropIns {
		errs = append(errs, loadDropIn(file, all)...)
	}
	for _, f := range all.fields {
		if f.found {
			s.sources[f.key] = FromFile
		}
	}
	var service map[string]string
	if installed {
		service, err = ServiceEnvironment(filepath.Dir(main))
		errs = append(errs, err)
	}
	for _, f := range all.fields {
		name := envOf(f.key)
		var values []string
		var from Source
		var where string
		if v, ok := flagOf(c, f.key); ok {
			if values, ok = v.([]string); !ok {
				continue // another flag of the command with the same name
			}
			from, where = FromFlag, "--"+f.key
		} else if v := os.Getenv(name); v != "" {
			from, where, values = FromEnvironment, name, f.lines(v)
		} else if v := service[name]; v != "" {
			from, where, values = FromService, filepath.Join(filepath.Dir(main), serviceEnvironment)+": "+name,
				f.lines(v)
		} else {
			continue
		}
		s.sources[f.key] = from
		for _, err := range f.set(values) {
			errs = append(errs, &Mistake{Key: f.key, At: where, Err: err})
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

func envOf(key string) string { return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")) }

// files lists the settings files in the order in which they are read: the main file, if it exists, and the drop-ins.
type files struct {
	main, dropIns []string
	passedOver    []string // files in the folder of drop-ins that are not read although their names look like it
}

// find lists the settings files. asked means that the user named the main file, which must exist then.
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

// mainFile returns the settings file that a flag or a variable names, or the default, and whether the user named it.
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

// Check returns the mistakes in a settings file for the structs that dst points to, which it fills. It reads only
// that file.
func Check(path string, dst ...any) error {
	all := collect(dst)
	all.setDefaults()
	return errors.Join(loadFile(path, all)...)
}

// Parse fills the structs that dst points to with their defaults and the text of a settings file; errors call it name.
func Parse(name, text string, dst ...any) error {
	all := collect(dst)
	all.setDefaults()
	return errors.Join(parse(name, []byte(text), all)...)
}
