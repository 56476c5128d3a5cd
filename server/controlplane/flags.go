package controlplane

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

// flags are what umiak sets, in order.
type flags []flag

type flag struct{ name, value string }

func (f *flags) set(name, value string) { *f = append(*f, flag{name, value}) }

func (f *flags) setf(name, format string, a ...any) { f.set(name, fmt.Sprintf(format, a...)) }

// merged are flags whose values of both sides count: who turns one more admission plugin on does not mean
// to turn NodeRestriction off. All others of umiak's give way to the user's.
var merged = []string{"feature-gates", "enable-admission-plugins"}

// metricFlags are those of the metrics' options, which all components share. Without any of them the
// options are left out: applied empty they complain of it, as an error.
var metricFlags = []string{"show-hidden-metrics-for-version", "disabled-metrics", "allow-metric-labels*"}

// given says whether the user sets one of the flags; a name that ends in * is a prefix.
func given(user []string, names ...string) bool {
	for _, u := range user {
		n, _, _ := strings.Cut(u, "=")
		for _, name := range names {
			if prefix, wild := strings.CutSuffix(name, "*"); n == name || wild && strings.HasPrefix(n, prefix) {
				return true
			}
		}
	}
	return false
}

// parse puts umiak's flags and the user's into the component's options. It reports everything that is
// wrong with the user's at once, named by the key that they were given with.
func parse(sets cliflag.NamedFlagSets, own flags, key string, user []string) error {
	fs := pflag.NewFlagSet(key, pflag.ContinueOnError)
	fs.SetOutput(io.Discard) // deprecation notices about our own choices are nothing for the user
	for _, s := range sets.FlagSets {
		fs.AddFlagSet(s)
	}
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, f := range own {
		if given(user, f.name) && !slices.Contains(merged, f.name) {
			continue
		}
		if err := fs.Set(f.name, f.value); err != nil {
			return fmt.Errorf("set %s of %s: %w", f.name, key, err)
		}
	}
	var errs []error
	for _, u := range user {
		name, value, _ := strings.Cut(u, "=")
		if fs.Lookup(name) == nil {
			errs = append(errs, fmt.Errorf("%s: there is no flag %q", key, name))
			continue
		}
		if err := fs.Set(name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	return errors.Join(errs...)
}
