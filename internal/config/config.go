package config

import (
	"errors"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// DefaultFile is the settings file without --config. It need not exist.
const DefaultFile = "/etc/umiak/config.yaml"

const envPrefix = "UMIAK_"

// Flags returns the command line flags of the settings in the structs that dst points to, sorted by name, and --config.
// Those of foreign keys are hidden. It panics on a malformed struct, which a test of any command finds.
func Flags(dst ...any) []cli.Flag {
	flags := []cli.Flag{&cli.StringFlag{
		Name: "config", Aliases: []string{"c"}, Usage: "settings file; FILE.d/*.yaml are read after it",
		Value: DefaultFile, EnvVars: []string{envPrefix + "CONFIG"},
	}}
	all := collect(dst)
	for _, f := range all.fields {
		flags = append(flags, newSettingFlag(f))
	}
	for _, k := range all.foreign {
		e := all.entryOf(k)
		for _, name := range e.flags() {
			flags = append(flags, newForeignFlag(name, e))
		}
	}
	slices.SortFunc(flags, func(a, b cli.Flag) int { return strings.Compare(a.Names()[0], b.Names()[0]) })
	return flags
}

// Defaults fills the structs that dst points to with the default of each setting.
func Defaults(dst ...any) { collect(dst).setDefaults() }

func envOf(key string) string { return envPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_")) }

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
