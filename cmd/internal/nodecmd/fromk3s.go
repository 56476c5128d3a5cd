package nodecmd

import (
	"fmt"
	"os"
	"reflect"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/atomicfile"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/config/k3sconvert"
)

// fromK3s is `umiak config from-k3s`.
func fromK3s(w Where) *ucli.Command {
	flags := []ucli.Flag{&ucli.StringFlag{Name: "write", Usage: "write the settings to this file, with the mode 0600"}}
	if w.Server != nil {
		flags = append(flags, &ucli.BoolFlag{Name: "agent", Usage: "the settings are those of `k3s agent`"})
	}
	return &ucli.Command{
		Name:      "from-k3s",
		Usage:     "print a settings file for what k3s is set to on this machine",
		ArgsUsage: "[FOLDER|FILE|UNIT]",
		Description: "Reads k3s' systemd unit with its files, or " + k3s.Etc + " where there is none; or a FOLDER with config.yaml, a settings\n" +
			"FILE, or a UNIT whose name ends in .service. Each line that is changed or left out has the reason as a comment. The output\n" +
			"passes `umiak config check`, unless it begins with what has to be mended. Secrets are in it: let --write make the file.\n\n" +
			"  umiak config from-k3s\n  umiak config from-k3s --write " + config.DefaultFile + "\n" +
			"  umiak config from-k3s /etc/systemd/system/k3s.service",
		Flags: flags,
		Action: func(c *ucli.Context) error {
			if c.NArg() > 1 {
				return Usagef(c, "one FOLDER, FILE or UNIT at most")
			}
			in := k3sconvert.Input{Node: w.nodeOnly(c)}
			if err := readK3s(&in, c.Args().First()); err != nil {
				return err
			}
			if len(in.Files) == 0 {
				return fmt.Errorf("there are no settings of k3s: neither a systemd unit k3s or k3s-agent nor files in %s",
					k3s.Etc)
			}
			if !in.Node && w.Server == nil {
				return Usagef(c,
					"these are settings of a server, which umiak-agent cannot be: use umiak config from-k3s")
			}
			text := k3sconvert.Translate(in, w.target(in.Node))
			if file := c.String("write"); file != "" {
				if k3sconvert.Exists(file) {
					return fmt.Errorf("%s exists; move it away first", file)
				}
				return atomicfile.Write(file, []byte(text), 0o600)
			}
			_, err := fmt.Fprint(c.App.Writer, text)
			return err
		},
	}
}

// readK3s reads a folder, a file or a unit; by default what k3s itself would read.
func readK3s(in *k3sconvert.Input, from string) error {
	if from == "" {
		for _, unit := range []string{"k3s", "k3s-agent"} {
			if path := "/etc/systemd/system/" + unit + ".service"; k3sconvert.Exists(path) {
				return in.ReadUnit(path)
			}
		}
		return in.ReadFolder(k3s.Etc)
	}
	st, err := os.Stat(from)
	switch {
	case err != nil:
		return fmt.Errorf("read settings of k3s: %w", err)
	case st.IsDir():
		return in.ReadFolder(from)
	case strings.HasSuffix(from, ".service"):
		return in.ReadUnit(from)
	}
	return in.ReadFile(from)
}

// target describes the program whose settings are written. It uses the structs in w.Known as scratch.
func (w *Where) target(nodeOnly bool) k3sconvert.Target {
	all := w.ofProgram(nodeOnly)
	read := func(text string) error {
		for _, s := range w.Known {
			reflect.ValueOf(s).Elem().SetZero()
		}
		config.Defaults(w.Known...)
		return config.Parse("settings", text, all...)
	}
	return k3sconvert.Target{
		Settings: config.Describe(all...),
		Read:     read,
		Validate: func(text string) error {
			err := read(text)
			_, invalid := w.checked(nodeOnly).Config(w.settingsDirs())
			return config.Report(err, invalid)
		},
	}
}
