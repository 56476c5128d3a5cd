package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/secretfiles"
)

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

// Settings describes what loading has found besides the values.
type Settings struct {
	// File is the settings file, whether it exists or not.
	File string
	// Files are the files that were read, in order.
	Files []string
	// Empty are those of them that have no setting.
	Empty []string
	// Remarks has a warning for each file or variable that looks like a setting and has no effect.
	Remarks []string
	// Unused has a sentence for each key of another program that is accepted without effect.
	Unused []string
	// Exposed has a warning for each file with a secret that users other than root can read: settings files, the
	// service's environment, and files that settings name.
	Exposed []string
	// Foreign reports that names of settings are used that only another program has.
	Foreign bool

	all     *schema
	sources map[string]place
}

// place is where the value of a setting comes from.
type place struct {
	source Source
	at     string // as "/etc/umiak/config.yaml:3: KEY", "UMIAK_KEY" or "--KEY"
	// foreign reports that the place has another program's name of the setting.
	foreign bool
}

// Source returns where the value of a key comes from.
func (s Settings) Source(key string) Source { return s.sources[key].source }

// Locate adds, to each mistake in a setting that another program's name sets, the place with that name: users look for
// the word that they have written.
func (s Settings) Locate(err error) error {
	var out []error
	for _, err := range flatten(err) {
		key, _, _ := strings.Cut(err.Error(), ": ")
		if p := s.sources[key]; p.foreign {
			err = fmt.Errorf("%w (set by %s)", err, p.at)
		}
		out = append(out, err)
	}
	return errors.Join(out...)
}

// Value is the effective value of a setting.
type Value struct {
	Key string
	// Texts are the values, one for a setting that is no list.
	Texts []string
	List  bool
	// Secret reports that the setting is a secret; Texts is then empty, and Set reports that it has a value.
	Secret, Set bool
	// From is the file, variable or flag that gives the value; empty for a default.
	From string
}

// Values returns the effective settings in the order of the structs, without secrets.
func (s Settings) Values() (out []Value) {
	for _, f := range s.all.fields {
		v := Value{Key: f.key, List: f.isList(), Secret: f.secret, From: s.sources[f.key].at}
		v.Set = slices.ContainsFunc(f.texts, func(text string) bool { return text != "" })
		if !f.secret {
			v.Texts = slices.Clone(f.texts)
		}
		out = append(out, v)
	}
	return out
}

// exposed returns the warnings about files that hold secrets.
func (s *schema) exposed(files []string) (out []string) {
	for _, f := range s.fields {
		if path, ok := f.dst[0].Interface().(string); ok && f.secretFile && path != "" {
			files = append(files, path)
		}
	}
	for _, file := range files {
		if why := secretfiles.File(file); why != "" && !slices.Contains(out, why) {
			out = append(out, why)
		}
	}
	return out
}
