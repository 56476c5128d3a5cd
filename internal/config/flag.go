package config

import (
	"flag"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// values is what a flag is given on the command line. It keeps the texts as they are: parsing, splitting at commas and
// environment variables are the same for all sources and are done by Load.
type values struct {
	isSwitch, verbatim bool // as of the setting
	given              []string
}

// Set takes one value of the command line.
func (f *values) Set(value string) error {
	if f.isSwitch {
		if _, err := truth(value); err != nil {
			return err
		}
	} else if strings.HasPrefix(value, "--") && !f.verbatim {
		return fmt.Errorf("it needs a value, and %s is a flag", strings.SplitN(value, "=", 2)[0])
	}
	f.given = append(f.given, value)
	return nil
}

// IsBoolFlag lets the flag stand without a value.
func (f *values) IsBoolFlag() bool { return f.isSwitch }

// Get returns the values that were given, as []string.
func (f *values) Get() any { return f.given }

// IsSet reports whether the flag was given.
func (f *values) IsSet() bool { return len(f.given) > 0 }

// settingFlag is the command line flag of one setting.
type settingFlag struct {
	values
	field *field
}

func newSettingFlag(f *field) *settingFlag {
	return &settingFlag{values: values{isSwitch: f.isBool(), verbatim: f.verbatim()}, field: f}
}

var (
	_ cli.DocGenerationSliceFlag = (*settingFlag)(nil)
	_ cli.CategorizableFlag      = (*settingFlag)(nil)
	_ flag.Getter                = (*settingFlag)(nil)
)

// Apply adds the flag to a set that is about to be parsed.
func (f *settingFlag) Apply(set *flag.FlagSet) error {
	f.given = nil
	set.Var(f, f.field.key, f.field.help())
	return nil
}

// String describes the flag for help; as a flag.Value without a field it is empty.
func (f *settingFlag) String() string {
	if f.field == nil {
		return ""
	}
	return cli.FlagStringer(f)
}

// Names returns the key.
func (f *settingFlag) Names() []string { return []string{f.field.key} }

// TakesValue reports whether help shows a value.
func (f *settingFlag) TakesValue() bool { return !f.IsBoolFlag() }

// GetUsage returns the help text.
func (f *settingFlag) GetUsage() string { return f.field.help() }

// GetValue returns the default of a flag that takes a value.
func (f *settingFlag) GetValue() string {
	if f.IsBoolFlag() {
		return ""
	}
	return f.field.def
}

// GetDefaultText returns the default as help shows it.
func (f *settingFlag) GetDefaultText() string {
	if f.IsBoolFlag() && f.field.def == "" {
		return "false"
	}
	return f.field.def
}

// GetEnvVars returns the environment variable of the setting.
func (f *settingFlag) GetEnvVars() []string { return []string{envOf(f.field.key)} }

// IsSliceFlag reports whether the flag may be repeated.
func (f *settingFlag) IsSliceFlag() bool { return f.field.isList() }

// IsVisible reports that help shows the flag.
func (f *settingFlag) IsVisible() bool { return true }

// GetCategory returns the topic under which help lists the flag.
func (f *settingFlag) GetCategory() string { return f.field.topic }

// foreignFlag is a flag by another name than a setting's, which help does not show.
type foreignFlag struct {
	values
	name string
}

func newForeignFlag(name string, e entry) *foreignFlag {
	return &foreignFlag{values: values{isSwitch: e.isSwitch(), verbatim: e.verbatim()}, name: name}
}

var (
	_ cli.VisibleFlag = (*foreignFlag)(nil)
	_ flag.Getter     = (*foreignFlag)(nil)
)

// Apply adds the flag to a set that is about to be parsed.
func (f *foreignFlag) Apply(set *flag.FlagSet) error {
	f.given = nil
	set.Var(f, f.name, "")
	return nil
}

// String returns the empty text, the flag's default.
func (f *foreignFlag) String() string { return "" }

// Names returns the name.
func (f *foreignFlag) Names() []string { return []string{f.name} }

// IsVisible reports that help does not show the flag.
func (f *foreignFlag) IsVisible() bool { return false }
