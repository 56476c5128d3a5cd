package nodecmd

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"
	"go.yaml.in/yaml/v3"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/config/k3sconvert"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/output"
)

// Settings is `umiak config`.
func Settings(w Where) *ucli.Command {
	return &ucli.Command{
		Name:        "config",
		Usage:       "check and show the settings, and translate those of k3s",
		Subcommands: []*ucli.Command{checkSettings(w), showSettings(w), fromK3s(w)},
	}
}

// settingsFlags are the flags of all settings, and of a command that reads them.
func (w *Where) settingsFlags(more ...ucli.Flag) []ucli.Flag {
	if w.Server != nil {
		more = append(more, &ucli.BoolFlag{Name: "agent", Usage: "the settings of a node that joins servers, as umiak agent reads them"})
	}
	return append(config.Flags(append(slices.Clone(w.Known), w.Foreign.Long())...), more...)
}

// nodeOnly reports whether a command is about the settings of a node that joins servers.
func (w *Where) nodeOnly(c *ucli.Context) bool { return w.Server == nil || c.Bool("agent") }

// ofProgram returns the settings structs of a server or of a node that joins one, with k3s' names.
func (w *Where) ofProgram(nodeOnly bool) []any {
	foreign := w.Foreign
	foreign.NodeOnly = nodeOnly
	known := slices.Clone(w.Known)
	if nodeOnly {
		known = slices.DeleteFunc(known, func(s any) bool {
			switch s.(type) {
			case *agent.Config, *logging.Config:
				return false
			}
			return true
		})
	}
	return append(known, foreign)
}

// settingsDirs returns the directories that the settings name.
func (w *Where) settingsDirs() layout.Dirs {
	for _, s := range w.Known {
		if cfg, ok := s.(*agent.Config); ok {
			return cfg.Dirs()
		}
	}
	return layout.Dirs{}
}

// settingsReport is what a start would find in the settings.
type settingsReport struct {
	// Files are those that were read, in order.
	Files []string `json:"files"`
	// Mistakes keep umiak from starting.
	Mistakes []string `json:"mistakes"`
	Warnings []string `json:"warnings"`
	// WithoutEffect are keys of k3s that umiak accepts and does not need.
	WithoutEffect []string `json:"withoutEffect"`
}

// checkSettings is `umiak config check`.
func checkSettings(w Where) *ucli.Command {
	return &ucli.Command{
		Name:      "check",
		Usage:     "print all that a start would find in the settings, without starting",
		ArgsUsage: "[FILE]",
		Description: "Reads the settings as a start does, or FILE and FILE.d/*.yaml instead of " + config.DefaultFile + ": mistakes, files with\n" +
			"secrets that others can read, files, variables and names that do nothing, keys of k3s that have no effect. Exits with 1\n" +
			"where a start would refuse them. `umiak check` also looks at the machine.\n\n" +
			"  umiak config check\n  umiak config check /etc/rancher/k3s/config.yaml\n  umiak config check -o json",
		Flags: w.settingsFlags(Output()),
		Action: func(c *ucli.Context) error {
			js, err := AsJSON(c)
			if err != nil {
				return err
			}
			switch {
			case c.NArg() > 1:
				return Usagef(c, "one FILE at most")
			case c.NArg() == 1:
				if err := c.Set("config", c.Args().First()); err != nil {
					return err
				}
			}
			rep := w.reportSettings(c)
			if js {
				err = PrintJSON(c, rep)
			} else {
				err = rep.print(c.App.Writer)
			}
			if err == nil && len(rep.Mistakes) > 0 {
				return ucli.Exit("", 1)
			}
			return err
		},
	}
}

// reportSettings loads and validates the settings as a start does.
func (w *Where) reportSettings(c *ucli.Context) settingsReport {
	nodeOnly := w.nodeOnly(c)
	all := w.ofProgram(nodeOnly)
	s, err := config.LoadInstalled(c, all...)
	_, invalid := w.checked(nodeOnly).Config(w.settingsDirs())
	rep := settingsReport{
		Files: append([]string{}, s.Files...), Mistakes: []string{}, WithoutEffect: append([]string{}, s.Unused...),
		Warnings: append(slices.Clone(s.Exposed), remarks(s, all)...),
	}
	for _, file := range s.Empty {
		rep.Warnings = append(rep.Warnings, file+" has no settings")
	}
	if k3sFile := k3s.Etc + "/config.yaml"; len(s.Files) == 0 && k3sconvert.Exists(k3sFile) {
		rep.Warnings = append(rep.Warnings,
			k3sFile+" is not read: --config reads it, `umiak config from-k3s` translates it")
	}
	if err := config.Report(err, s.Locate(invalid)); err != nil {
		rep.Mistakes = strings.Split(err.Error(), "\n")
	}
	return rep
}

// print prints the report for people.
func (r settingsReport) print(w io.Writer) error {
	t := output.NewTable(w)
	for _, l := range []struct {
		kind  string
		texts []string
	}{{"mistake", r.Mistakes}, {"warning", r.Warnings}, {"ignored", r.WithoutEffect}} {
		for _, text := range l.texts {
			fmt.Fprintf(t, "%s\t%s\n", l.kind, text)
		}
	}
	files := strings.Join(r.Files, ", ")
	if files == "" {
		files = "no file"
	}
	verdict := "these settings can be used"
	if len(r.Mistakes) > 0 {
		verdict = "these settings cannot be used"
	}
	fmt.Fprintf(t, "%s (read: %s)\n", verdict, files)
	return t.Flush()
}

// shownSetting is a setting as `config show -o json` prints it.
type shownSetting struct {
	Key string `json:"key"`
	// Value is a text, or a list of texts; absent for a secret.
	Value  any    `json:"value,omitempty"`
	From   string `json:"from"`
	Secret string `json:"secret,omitempty"`
}

// fromDefault is the source of a value that nothing sets.
const fromDefault = "default"

// showSettings is `umiak config show`.
func showSettings(w Where) *ucli.Command {
	return &ucli.Command{
		Name:  "show",
		Usage: "print the settings in effect and the file, variable or flag that each comes from",
		Description: "Secrets are left out. With -o yaml, the output is a settings file with the source of each key as a comment.\n\n" +
			"  umiak config show\n  umiak config show -o yaml\n  umiak config show --config /etc/rancher/k3s/config.yaml -o json",
		Flags: w.settingsFlags(
			&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "json or yaml, or empty for people"}),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			show, ok := map[string]func(*ucli.Context, []config.Value) error{
				"": showTable, "json": showJSON, "yaml": showYAML}[c.String("output")]
			if !ok {
				return Usagef(c, "--output: %q is not json or yaml", c.String("output"))
			}
			s, err := config.LoadInstalled(c, w.ofProgram(w.nodeOnly(c))...)
			if err != nil {
				return BadConfig(err)
			}
			return show(c, s.Values())
		},
	}
}

// secretState describes a secret without its value.
func secretState(v config.Value) string {
	switch {
	case !v.Secret:
		return ""
	case v.Set:
		return "set"
	}
	return "not set"
}

func source(v config.Value) string {
	if v.From == "" {
		return fromDefault
	}
	return v.From
}

func showTable(c *ucli.Context, all []config.Value) error {
	t := output.NewTable(c.App.Writer, "KEY", "VALUE", "FROM")
	for _, v := range all {
		text := strings.Join(v.Texts, ", ")
		if v.Secret {
			text = "(secret, " + secretState(v) + ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", v.Key, text, source(v))
	}
	return t.Flush()
}

func showJSON(c *ucli.Context, all []config.Value) error {
	out := []shownSetting{}
	for _, v := range all {
		s := shownSetting{Key: v.Key, From: source(v), Secret: secretState(v)}
		switch {
		case v.Secret:
		case v.List:
			s.Value = append([]string{}, v.Texts...)
		default:
			s.Value = strings.Join(v.Texts, "")
		}
		out = append(out, s)
	}
	return PrintJSON(c, out)
}

func showYAML(c *ucli.Context, all []config.Value) error {
	for _, v := range all {
		switch {
		case v.Secret:
			fmt.Fprintf(c.App.Writer, "# %s: secret, %s # %s\n", v.Key, secretState(v), source(v))
			continue
		case len(v.Texts) == 0:
			fmt.Fprintf(c.App.Writer, "# %s: not set\n", v.Key)
			continue
		}
		var value any = v.Texts
		if !v.List {
			value = v.Texts[0]
		}
		text, err := yamlPair(v.Key, value)
		if err != nil {
			return err
		}
		first, rest, more := strings.Cut(text, "\n")
		fmt.Fprintf(c.App.Writer, "%s # %s\n", first, source(v))
		if more && rest != "" {
			fmt.Fprintln(c.App.Writer, rest)
		}
	}
	return nil
}

// yamlPair returns a key and its value as YAML without a line end.
func yamlPair(key string, value any) (string, error) {
	raw, err := yaml.Marshal(map[string]any{key: value})
	if err != nil {
		return "", errors.Join(fmt.Errorf("print %s", key), err)
	}
	return strings.TrimRight(string(raw), "\n"), nil
}
