package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Remarks returns a warning for each file or variable that looks like a setting of the structs that dst points to and
// has no effect: files in the folder of drop-ins that are not read, and variables in the environment of this process
// or of the service that belong to no setting.
func Remarks(c *cli.Context, dst ...any) []string {
	main, _ := mainFile(c)
	found, _ := find(main, false) // Load has returned the error
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

// unknown returns a warning for each name with umiak's prefix that is not in known.
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
