package config

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// remarks returns the warnings about files and variables that look like settings and have no effect: files in the
// folder of drop-ins that are not read, and variables in the environment of this process or of the service, read from
// serviceFile, that belong to no setting.
func (s *schema) remarks(passedOver []string, serviceFile string, service map[string]string) []string {
	var out []string
	for _, file := range passedOver {
		out = append(out, fmt.Sprintf("%s is not read: the names of files of settings end in .yaml or .yml", file))
	}
	prefixes, known := []string{envPrefix}, []string{envPrefix + "CONFIG"}
	for _, f := range s.fields {
		known = append(known, envOf(f.key))
	}
	for _, p := range s.programs {
		prefixes, known = append(prefixes, p.EnvPrefix), append(known, p.FileEnv)
	}
	for _, k := range s.foreign {
		known = append(known, s.entryOf(k).environment()...)
	}
	var own []string
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(own, name) {
			own = append(own, name)
		}
	}
	var kept []string
	for name := range service {
		if !slices.Contains(own, name) {
			kept = append(kept, name)
		}
	}
	return slices.Concat(out, unknown("the environment", own, prefixes, known),
		unknown(serviceFile, kept, prefixes, known))
}

// unknown returns a warning for each name with one of the prefixes that is not in known.
func unknown(where string, names, prefixes, known []string) (out []string) {
	slices.Sort(names)
	for _, name := range names {
		if slices.Contains(known, name) ||
			!slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		text := fmt.Sprintf("%s in %s does nothing: there is no such setting", name, where)
		if near := Nearest(name, known); near != "" {
			text += "; did you mean " + near + "?"
		}
		out = append(out, text)
	}
	return out
}

// unused records that a key has no effect.
func (s *schema) unused(at, reason string) {
	text := fmt.Sprintf("%s has no effect: %s", at, reason)
	if !slices.Contains(s.findings.unused, text) {
		s.findings.unused = append(s.findings.unused, text)
	}
}
