package k3sconvert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
)

// ReadUnit adds what a systemd unit of k3s gives it: the settings file that it names or k3s' default, variables of
// Environment and EnvironmentFile, and the flags of ExecStart, which take precedence in this order.
func (in *Input) ReadUnit(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the unit of k3s: %w", err)
	}
	in.Files = append(in.Files, path)
	var start []string
	variables := map[string]string{}
	text := strings.ReplaceAll(strings.ReplaceAll(string(raw), "\r\n", "\n"), "\\\n", " ")
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			continue
		}
		switch strings.TrimSpace(name) {
		case "ExecStart":
			if value = strings.TrimLeft(strings.TrimSpace(value), "-@:+!"); value != "" {
				start, err = words(value)
			} else {
				start = nil // an empty one resets those before
			}
		case "Environment":
			var all []string
			all, err = words(value)
			for _, v := range all {
				addVariable(variables, v)
			}
		case "EnvironmentFile":
			err = in.readEnvironment(strings.TrimSpace(value), variables)
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", path, name, err)
		}
	}
	return in.command(path, start, variables)
}

// readEnvironment adds the variables of a file; one whose name begins with - need not exist.
func (in *Input) readEnvironment(path string, variables map[string]string) error {
	path, optional := strings.CutPrefix(path, "-")
	raw, err := os.ReadFile(filepath.Clean(path))
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in.Files = append(in.Files, path)
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if all, err := words(line); err == nil && len(all) > 0 {
			addVariable(variables, strings.Join(all, " "))
		}
	}
	return nil
}

func addVariable(variables map[string]string, pair string) {
	if name, value, ok := strings.Cut(pair, "="); ok {
		variables[strings.TrimSpace(name)] = value
	}
}

// command adds the settings of a command line of k3s and its environment.
func (in *Input) command(unit string, argv []string, variables map[string]string) error {
	i := slices.IndexFunc(argv, func(word string) bool { return word == "server" || word == "agent" })
	if i < 1 {
		return fmt.Errorf("%s: ExecStart is no command `k3s server` or `k3s agent`", unit)
	}
	in.Node = argv[i] == "agent"
	var flags Input
	if err := flags.parseFlags(argv[i+1:]); err != nil {
		return fmt.Errorf("%s: ExecStart: %w", unit, err)
	}
	file := k3s.Etc + "/config.yaml"
	if v := variables["K3S_CONFIG_FILE"]; v != "" {
		file = v
	}
	for _, e := range flags.entries {
		if (e.key == "config" || e.key == "c") && len(e.values) > 0 {
			file = e.values[0]
		}
	}
	if err := in.ReadFile(file); err != nil {
		return err
	}
	for _, k := range k3s.Keys(false).Keys {
		for _, name := range slices.Concat(k.Env, k.PartEnv) {
			if v := variables[name]; v != "" {
				in.set(k.Key, []string{v}, false)
			}
		}
	}
	for _, e := range flags.entries {
		if e.key != "config" && e.key != "c" {
			in.set(e.key, e.values, false)
		}
	}
	return nil
}

// parseFlags adds the flags of a command line.
func (in *Input) parseFlags(argv []string) error {
	for len(argv) > 0 {
		word := argv[0]
		argv = argv[1:]
		if !strings.HasPrefix(word, "-") {
			return fmt.Errorf("%q is no flag", word)
		}
		name, value, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
		key, isSwitch := longName(name)
		switch {
		case has:
		case isSwitch:
			value = "true"
		case len(argv) == 0:
			return fmt.Errorf("%s needs a value", word)
		default:
			value, argv = argv[0], argv[1:]
		}
		in.set(key, []string{value}, true)
	}
	return nil
}

// longName returns the key of a flag, and whether it stands without a value.
func longName(name string) (key string, isSwitch bool) {
	for _, k := range k3s.Keys(false).Keys {
		if k.Key == name || k.Short == name {
			return k.Key, k.Form == config.Switch
		}
	}
	return name, false
}

// words splits a line at blanks, with the quotes and backslashes of systemd.syntax(7).
func words(line string) (out []string, err error) {
	var word strings.Builder
	quote, inWord := rune(0), false
	escaped := false
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, inWord = r, true
		case r == ' ' || r == '\t' || r == '\n':
			if inWord {
				out = append(out, word.String())
				word.Reset()
			}
			inWord = false
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("a quote %c has no end", quote)
	}
	if inWord {
		out = append(out, word.String())
	}
	return out, nil
}
