package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// Load fills the structs that dst points to, for a process that runs with these settings. The error joins all mistakes.
func Load(c *cli.Context, dst ...any) (Settings, error) { return loadAll(c, false, dst) }

// LoadInstalled is Load for commands that inspect the service of this machine: it also applies the variables that
// install.sh has put into the environment of the service (ServiceEnvironment, beside the settings file).
func LoadInstalled(c *cli.Context, dst ...any) (Settings, error) { return loadAll(c, true, dst) }

func loadAll(c *cli.Context, installed bool, dst []any) (Settings, error) {
	all := collect(dst)
	all.setDefaults()
	main, asked := all.mainFile(c)
	l := loader{all: all, sources: map[string]place{}}
	found, err := find(main, asked)
	l.fail(err)
	for _, file := range found.main {
		l.fail(loadFile(file, all)...)
	}
	for _, file := range found.dropIns {
		l.fail(loadDropIn(file, all)...)
	}
	for _, f := range all.fields {
		if f.at != "" {
			l.sources[f.key] = place{FromFile, f.at, f.foreign}
		}
	}
	serviceFile := filepath.Join(filepath.Dir(main), serviceEnvironment)
	service, err := ServiceEnvironment(filepath.Dir(main))
	if installed {
		l.fail(err)
	}
	l.tiers = []tier{flagsOf(c), variables(FromEnvironment, "", os.Getenv)}
	if installed {
		l.tiers = append(l.tiers, variables(FromService, serviceFile+": ",
			func(name string) string { return service[name] }))
	}
	l.namesOutsideFiles()
	l.absentSwitches()
	secrets := all.findings.secretFiles
	if all.holdsSecret(service) {
		secrets = append(secrets, serviceFile)
	}
	s := Settings{
		File: main, Files: all.findings.files, Empty: all.findings.empty, Unused: all.findings.unused,
		Foreign: all.findings.foreign, Remarks: all.remarks(found.passedOver, serviceFile, service),
		Exposed: all.exposed(secrets), all: all, sources: l.sources,
	}
	return s, errors.Join(l.errs...)
}

// loader applies what flags and variables set.
type loader struct {
	all     *schema
	tiers   []tier // the first that has a value counts
	sources map[string]place
	errs    []error
}

func (l *loader) fail(errs ...error) {
	for _, err := range errs {
		if err != nil {
			l.errs = append(l.errs, err)
		}
	}
}

// tier is a source that has names beside the files.
type tier struct {
	source Source
	// given returns what the names of an entry have in this source.
	given func(entry) []given
}

// given is what one name has in a source.
type given struct {
	entry
	at     string
	values []string
}

// flagsOf returns the command line as a source.
func flagsOf(c *cli.Context) tier {
	return tier{FromFlag, func(e entry) (out []given) {
		for _, name := range e.flags() {
			v, ok := flagOf(c, name)
			if values, ours := v.([]string); ok && ours { // else it is another flag of the command with the same name
				out = append(out, given{e, dashed(name), values})
			}
		}
		return out
	}}
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// variables returns an environment as a source; messages put where before the names.
func variables(from Source, where string, get func(string) string) tier {
	return tier{from, func(e entry) (out []given) {
		for _, name := range e.environment() {
			if v := get(name); v != "" {
				out = append(out, given{e, where + name, lines(v, e.verbatim())})
			}
		}
		return out
	}}
}

// namesOutsideFiles applies the flags and variables.
func (l *loader) namesOutsideFiles() {
	others := map[*field][]entry{}
	for _, k := range l.all.foreign {
		e := l.all.entryOf(k)
		if e.field != nil {
			others[e.field] = append(others[e.field], e)
			continue
		}
		for _, t := range l.tiers {
			l.translate(t.given(e)) // only for its mistakes and remarks: it sets nothing
		}
	}
	for _, f := range l.all.fields {
		for _, t := range l.tiers {
			all := t.given(entry{field: f})
			for _, e := range others[f] {
				all = append(all, t.given(e)...)
			}
			if all = l.translate(all); len(all) > 0 {
				l.set(f, t.source, all)
				break
			}
		}
	}
}

// absentSwitches turns off what the other program does only where a switch is on, if its names set the rest and nothing
// sets the switch.
func (l *loader) absentSwitches() {
	for _, t := range l.all.programs {
		for i := range t.Keys {
			e := l.all.entryOf(&t.Keys[i])
			if e.field == nil || len(e.foreign.Enables) == 0 {
				continue
			}
			if _, given := l.sources[e.field.key]; given {
				continue
			}
			for _, key := range e.foreign.Enables {
				if from := l.sources[key]; from.foreign {
					l.all.unused(from.at, fmt.Sprintf("%s uses it only with %s: true", t.Program, e.foreign.Key))
					l.turnOff(e, from)
				}
			}
		}
	}
}

// turnOff gives the setting of a switch the value that it has where the switch is off.
func (l *loader) turnOff(e entry, from place) {
	values, _, err := l.all.values(e, []string{"false"})
	l.fail(err)
	l.sources[e.field.key] = from
	l.fail(e.field.set(values)...)
}

// translate returns what is given with the values that it gives the setting, without names that set nothing.
func (l *loader) translate(all []given) (out []given) {
	for _, g := range all {
		values, reason, err := l.all.values(g.entry, g.values)
		switch {
		case err != nil:
			l.fail(fmt.Errorf("%s: %w", g.at, err))
		case reason != "":
			l.all.unused(g.at, reason)
		case values != nil:
			g.values = values
			out = append(out, g)
		}
	}
	return out
}

// set gives a setting the values of its names in one source, which must agree.
func (l *loader) set(f *field, from Source, all []given) {
	first := all[0]
	l.sources[f.key] = place{from, first.at, first.foreign != nil && first.other()}
	for _, err := range f.set(first.values) {
		l.fail(&Mistake{Key: f.key, At: first.at, Err: err})
	}
	for _, g := range all[1:] {
		if !slices.Equal(f.split(g.values), f.split(first.values)) {
			l.fail(&Mistake{Key: f.key, At: g.at, Err: differ(first.at)})
		}
	}
}

// holdsSecret reports whether variables set a secret.
func (s *schema) holdsSecret(variables map[string]string) bool {
	in := func(e entry) bool {
		if e.field == nil || !e.field.secret {
			return false
		}
		names := e.environment()
		if e.foreign != nil {
			names = slices.Concat(names, e.foreign.PartEnv)
		}
		return slices.ContainsFunc(names, func(name string) bool { return isSecret(variables[name]) })
	}
	return slices.ContainsFunc(s.fields, func(f *field) bool { return in(entry{field: f}) }) ||
		slices.ContainsFunc(s.foreign, func(k *ForeignKey) bool { return in(s.entryOf(k)) })
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
func (s *schema) mainFile(c *cli.Context) (path string, asked bool) {
	path = DefaultFile
	names := []string{envPrefix + "CONFIG"}
	for _, p := range s.programs {
		names = append(names, p.FileEnv)
	}
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			path, asked = v, true
			break
		}
	}
	for _, name := range []string{"config", "c"} {
		if v, ok := flagOf(c, name); ok {
			return fmt.Sprint(v), true
		}
	}
	return path, asked
}
