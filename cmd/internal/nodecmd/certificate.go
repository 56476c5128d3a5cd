package nodecmd

import (
	"fmt"
	"time"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/certfiles"
)

// Certificate is `umiak certificate`: check, and what more a binary can do.
func Certificate(w Where, more ...*ucli.Command) *ucli.Command {
	return &ucli.Command{
		Name:        "certificate",
		Usage:       "look at this machine's certificates and renew them",
		Subcommands: append([]*ucli.Command{certificateCheck(w)}, more...),
	}
}

func certificateCheck(w Where) *ucli.Command {
	return &ucli.Command{
		Name:  "check",
		Usage: "list this machine's certificates with their ends",
		Description: "Reads the files of a server and of a node; umiak need not run. Exits with 1 when a certificate has ended,\n" +
			"cannot be read, or ends within --warn.\n\n  umiak certificate check\n  umiak certificate check --warn 30d -o json",
		Flags: w.Flags(Output(), &ucli.StringFlag{Name: "warn", Value: "14d",
			Usage: "how long before its end a certificate is not fine any more, as 14d or 12h"}),
		Action: Prints(func(c *ucli.Context, js bool) error {
			warn, err := days(c.String("warn"))
			if err != nil {
				return Usagef(c, "--warn: %v", err)
			}
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			list, err := certfiles.Inspect(dirs, time.Now(), warn)
			if err != nil {
				return err
			}
			if js {
				err = PrintJSON(c, list)
			} else {
				err = certfiles.Print(c.App.Writer, list)
			}
			if err != nil {
				return err
			}
			for _, e := range list {
				if !e.Fine() {
					return ucli.Exit("", 1)
				}
			}
			return nil
		}),
	}
}

// days parses a duration that may also be in days.
func days(s string) (time.Duration, error) {
	var n int
	var unit string
	if _, err := fmt.Sscanf(s, "%d%s", &n, &unit); err == nil && unit == "d" && n >= 0 && n < 1<<16 {
		return time.Duration(n) * 24 * time.Hour, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time such as 14d or 12h", s)
	}
	return d, nil
}
