// Package componentflags applies flags that users give to a component of Kubernetes to the flag set of the component.
// Its errors name the setting in which the flags were given.
//
// agent/kubelet, server/controlplane and datastore/etcd use it. It imports nothing of umiak but internal/config.
package componentflags

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/umiak-io/umiak/internal/config"
)

// Split splits one argument, NAME=VALUE, with or without leading dashes, with underscores or dashes in the name.
// alone means that it has no =VALUE.
func Split(arg string) (name, value string, alone bool) {
	name, value, found := strings.Cut(arg, "=")
	name = strings.ReplaceAll(strings.TrimLeft(strings.TrimSpace(name), "-"), "_", "-")
	return name, value, !found
}

// Given reports whether args set one of the flags; a name that ends in * is a prefix.
func Given(args []string, names ...string) bool {
	for _, a := range args {
		n, _, _ := Split(a)
		for _, name := range names {
			if prefix, wild := strings.CutSuffix(name, "*"); n == name || wild && strings.HasPrefix(n, prefix) {
				return true
			}
		}
	}
	return false
}

// logFlags are flags of klog that are accepted without effect.
var logFlags = []string{"logtostderr", "alsologtostderr"}

// LogRemarks returns a sentence for each flag of klog in args that has no effect; key is the setting that has them.
func LogRemarks(key string, args []string) (out []string) {
	for _, a := range args {
		if name, _, _ := Split(a); slices.Contains(logFlags, name) {
			out = append(out, fmt.Sprintf("%s: %s has no effect: the log goes to standard error", key, name))
		}
	}
	return out
}

// Verbosity is what the flags v and vmodule of components ask for. The components of one process share one log, so the
// highest level counts.
type Verbosity struct {
	Level   int      // of all files
	Modules []string // PATTERN=NUMBER
}

// Add returns what v and other ask for together.
func (v Verbosity) Add(other Verbosity) Verbosity {
	return Verbosity{max(v.Level, other.Level), slices.Concat(v.Modules, other.Modules)}
}

// TakeVerbosity returns the verbosity that args ask for, and the other arguments. key is the setting that has args.
func TakeVerbosity(key string, args []string) (v Verbosity, rest []string, err error) {
	var errs []error
	for _, a := range args {
		switch name, value, _ := Split(a); name {
		case "v":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				errs = append(errs, fmt.Errorf("%s: v: %q is not a number such as 4", key, value))
			}
			v.Level = max(v.Level, n)
		case "vmodule":
			for m := range strings.SplitSeq(value, ",") {
				if m != "" {
					v.Modules = append(v.Modules, m)
				}
			}
		default:
			rest = append(rest, a)
		}
	}
	return v, rest, errors.Join(errs...)
}

// Set sets the flags in args. It reports all mistakes at once, each with key, the setting that has args. refused
// returns what to do instead of setting a flag to a value, empty if the flag may be set; nil allows all.
func Set(fs *pflag.FlagSet, key string, args []string, refused func(name, value string) string) error {
	var errs []error
	fail := func(format string, a ...any) { errs = append(errs, fmt.Errorf(key+": "+format, a...)) }
	for _, a := range args {
		name, value, alone := Split(a)
		if name == "" {
			fail("%q is not NAME=VALUE", a)
			continue
		}
		f := fs.Lookup(name)
		if alone && f != nil {
			value = f.NoOptDefVal
		}
		if refused != nil {
			if instead := refused(name, value); instead != "" {
				fail("%s cannot be set: %s", name, instead)
				continue
			}
		}
		switch {
		case f == nil && slices.Contains(logFlags, name):
		case f == nil:
			fail("there is no flag %q%s", name, near(name, fs))
		case alone && f.NoOptDefVal == "":
			fail("%s needs a value: %s=VALUE", name, name)
		default:
			if err := fs.Set(name, value); err != nil {
				fail("%w", err)
			}
		}
	}
	return errors.Join(errs...)
}

// near returns a suggestion for an unknown flag: the flags that begin with its name, or the one with the fewest edits.
func near(name string, fs *pflag.FlagSet) string {
	var like, all []string
	fs.VisitAll(func(f *pflag.Flag) {
		if all = append(all, f.Name); strings.HasPrefix(f.Name, name) {
			like = append(like, f.Name)
		}
	})
	if len(like) == 0 || len(like) > 4 {
		like = nil
		if best := config.Nearest(name, all); best != "" {
			like = []string{best}
		}
	}
	if len(like) == 0 {
		return ""
	}
	slices.Sort(like)
	return "; did you mean " + strings.Join(like, " or ") + "?"
}
