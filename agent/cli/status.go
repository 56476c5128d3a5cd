package cli

import (
	"encoding/json"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/status"
)

// Where are the settings that every command needs to find the node it speaks of.
type Where struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`
	// Known are the settings structs of the binary: their keys may stand in the settings file.
	Known []any
	// AgentOnly is true in the binary that cannot be a server.
	AgentOnly bool
}

// Flags are the flags that find the node.
func (w *Where) Flags(more ...ucli.Flag) []ucli.Flag { return append(config.Flags(w), more...) }

// Dirs reads the settings and returns the node's directories.
func (w *Where) Dirs(c *ucli.Context) (layout.Dirs, error) {
	if err := config.Load(c, append([]any{w}, w.Known...)...); err != nil {
		return layout.Dirs{}, BadConfig(err)
	}
	return layout.Dirs{Data: w.DataDir, Run: w.RunDir}, nil
}

// Output is the -o flag of commands that print.
func Output() ucli.Flag {
	return &ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "json, or empty for people"}
}

// AsJSON says whether JSON was asked for.
func AsJSON(c *ucli.Context) (bool, error) {
	switch o := c.String("output"); o {
	case "":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, fmt.Errorf("--output: %q is not json", o)
	}
}

// Prints is the Action of a command that takes no arguments and has the flag of Output.
func Prints(action func(c *ucli.Context, js bool) error) ucli.ActionFunc {
	return func(c *ucli.Context) error {
		if err := NoArgs(c); err != nil {
			return err
		}
		js, err := AsJSON(c)
		if err != nil {
			return err
		}
		return action(c, js)
	}
}

// PrintJSON prints for programs.
func PrintJSON(c *ucli.Context, v any) error {
	e := json.NewEncoder(c.App.Writer)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// Status is `umiak status`.
func Status(w Where) *ucli.Command {
	return &ucli.Command{
		Name:        "status",
		Usage:       "show how the node and its parts are",
		Description: "Asks the running umiak; exits with 1 when it is not running or not ready.\n\n  umiak status\n  umiak status -o json",
		Flags:       w.Flags(Output()),
		Action: Prints(func(c *ucli.Context, js bool) error {
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			rep, err := status.Get(c.Context, dirs.StatusSocket())
			if err != nil {
				return err
			}
			if js {
				err = PrintJSON(c, rep)
			} else {
				err = rep.Print(c.App.Writer)
			}
			if err == nil && !rep.Ready {
				return ucli.Exit("", 1)
			}
			return err
		}),
	}
}
