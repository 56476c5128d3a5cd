package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Remarks returns a sentence for each thing that was meant as a setting of the structs that dst points to and does nothing: files in the
// folder of drop-ins that are not read, and variables of this process's or of the service's environment that no setting has.
func Remarks(c *cli.Context, dst ...any) []string {
	main, _ := mainFile(c)
	found, _ := find(main, false) // Load has said what is wrong
	var out []string
	for _, file := range found.passedOver {
		out = append(out, fmt.Sprintf("%s is not read: the names of files of settings end in .yaml or .yml", file))
	}
	known := []string{envPrefix + "CONFIG"}
	for _, f := range collect(dst).fields {
		known = append(known, envOf(f.key))
	}
	var own []string
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains(own, name) {
			own = append(own, name)
		}
	}
	file := filepath.Join(filepath.Dir(main), serviceEnvironment)
	service, _ := ServiceEnvironment(filepath.Dir(main))
	var kept []string
	for name := range service {
		if !slices.Contains(own, name) {
			kept = append(kept, name)
		}
	}
	return slices.Concat(out, unknown("the environment", own, known), unknown(file, kept, known))
}

// unknown words which of the names that begin as umiak's do are no setting.
func unknown(where string, names, known []string) (out []string) {
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) {
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
