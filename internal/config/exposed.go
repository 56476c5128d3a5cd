package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/secretfiles"
	"github.com/umiak-io/umiak/internal/yamlfile"
)

// Exposed returns a warning for each file with a secret that users other than root can read: settings files, the
// service's environment, and files that settings name. The structs that dst points to must have been filled by Load.
func Exposed(c *cli.Context, dst ...any) []string {
	all := collect(dst)
	main, _ := mainFile(c)
	var named []string
	found, _ := find(main, false) // Load has returned the error
	add := func(file string, read func(string) ([]byte, error)) {
		if raw, err := read(file); err == nil && holdsSecret(raw, all) {
			named = append(named, file)
		}
	}
	for _, file := range found.main {
		add(file, os.ReadFile)
	}
	for _, file := range found.dropIns {
		add(file, yamlfile.Read)
	}
	etc := filepath.Dir(main)
	service, _ := ServiceEnvironment(etc)
	for _, f := range all.fields {
		if f.secret && isSecret(service[envOf(f.key)]) {
			named = append(named, filepath.Join(etc, serviceEnvironment))
		}
		if path, ok := f.dst[0].Interface().(string); ok && f.secretFile && path != "" {
			named = append(named, path)
		}
	}
	var out []string
	for _, file := range named {
		if why := secretfiles.File(file); why != "" && !slices.Contains(out, why) {
			out = append(out, why)
		}
	}
	return out
}

// holdsSecret reports whether a settings file sets a secret.
func holdsSecret(raw []byte, all *schema) bool {
	doc, err := yamlfile.Document(raw)
	if err != nil || doc == nil {
		return false
	}
	for i := 0; i+1 < len(doc.Content); i += 2 {
		if f := all.byKey[doc.Content[i].Value]; f != nil && f.secret && isSecret(doc.Content[i+1].Value) {
			return true
		}
	}
	return false
}

// isSecret reports whether the value of a secret setting contains a secret. A URL does only if it has a password.
func isSecret(v string) bool {
	return v != "" && (!strings.Contains(v, "://") || strings.Contains(v, "@"))
}
