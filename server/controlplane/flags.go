package controlplane

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/umiak-io/umiak/internal/componentflags"
)

// flags are the flags that Umiak sets, in order.
type flags []flag

type flag struct{ name, value string }

func (f *flags) set(name, value string) { *f = append(*f, flag{name, value}) }

func (f *flags) setf(name, format string, a ...any) { f.set(name, fmt.Sprintf(format, a...)) }

// merged are flags whose values of both sides count: who turns one more admission plugin on does not mean
// to turn NodeRestriction off. All others of umiak's give way to the user's, or are refused.
var merged = []string{"feature-gates", "enable-admission-plugins"}

// metricFlags are those of the metrics' options, which all components share. Without any of them the
// options are left out: applied empty they complain of it, as an error.
var metricFlags = []string{"show-hidden-metrics-for-version", "disabled-metrics", "allow-metric-labels*"}

// given reports whether the user sets one of the flags; a name that ends in * is a prefix.
func given(user []string, names ...string) bool { return componentflags.Given(user, names...) }

// parse puts umiak's flags and the user's into the component's options. It reports everything that is
// wrong with the user's at once, named by the key that they were given with. owned are the flags that the user
// cannot set to another value than umiak, with what to do instead.
func parse(sets cliflag.NamedFlagSets, own flags, key string, user []string, owned map[string]string) error {
	fs := pflag.NewFlagSet(key, pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // deprecation notices about our own choices are nothing for the user
	for _, s := range sets.FlagSets {
		fs.AddFlagSet(s)
	}
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	refused := func(name, value string) string {
		for _, f := range own {
			if f.name == name && f.value == value {
				return ""
			}
		}
		if name == "authorization-mode" {
			if modes := strings.Split(value, ","); slices.Contains(modes, "Node") && slices.Contains(modes, "RBAC") {
				return ""
			}
		}
		return owned[name]
	}
	for _, f := range own {
		if given(user, f.name) && !slices.Contains(merged, f.name) {
			continue
		}
		if err := fs.Set(f.name, f.value); err != nil {
			return fmt.Errorf("set %s of %s: %w", f.name, key, err)
		}
	}
	return componentflags.Set(fs, key, user, refused)
}
