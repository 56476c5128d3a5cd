package nodecmd

import (
	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/internal/status"
)

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
		return false, Usagef(c, "--output: %q is not json", o)
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
	return output.JSON(c.App.Writer, v)
}

// Status is `umiak status`.
func Status(w Where) *ucli.Command {
	return &ucli.Command{
		Name:        "status",
		Usage:       "show how the node and its parts are",
		Description: "Asks the running umiak; exits with 1 when it is not running, not ready, or something is unhealthy.\n\n  umiak status\n  umiak status -o json",
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
			if err == nil && (!rep.Ready || !rep.Healthy()) {
				return ucli.Exit("", 1)
			}
			return err
		}),
	}
}
