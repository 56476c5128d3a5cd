package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// serviceEnvironment is the name of the file, beside the settings file, with the environment of the installed service.
const serviceEnvironment = "umiak.env"

// ServiceEnvironment reads the variables that the installed service gets from umiak.env in the folder etc: the syntax
// is that of systemd.exec(5), EnvironmentFile, without line continuation. A file that does not exist has none.
func ServiceEnvironment(etc string) (map[string]string, error) {
	raw, err := os.ReadFile(filepath.Join(etc, serviceEnvironment))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the service's environment: %w", err)
	}
	out := map[string]string{}
	n := 0
	for line := range bytes.Lines(raw) {
		n++
		l := strings.TrimSpace(string(line))
		if l == "" || l[0] == '#' || l[0] == ';' {
			continue
		}
		if strings.HasPrefix(l, "export ") {
			return nil, fmt.Errorf("%s:%d: systemd ignores a line with `export`; write NAME=VALUE alone",
				filepath.Join(etc, serviceEnvironment), n)
		}
		name, value, ok := strings.Cut(l, "=")
		if !ok {
			continue // as systemd does
		}
		out[strings.TrimSpace(name)] = unquote(strings.TrimSpace(value))
	}
	return out, nil
}

// unquote removes the quotes around a value.
func unquote(v string) string {
	if len(v) < 2 || v[0] != v[len(v)-1] {
		return v
	}
	switch inner := v[1 : len(v)-1]; v[0] {
	case '\'':
		return inner
	case '"':
		return strings.NewReplacer(`\"`, `"`, `\\`, `\`, `\$`, `$`, "\\`", "`").Replace(inner)
	}
	return v
}
