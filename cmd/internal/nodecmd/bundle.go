package nodecmd

import (
	"fmt"
	"slices"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent/bundle"
)

// Bundle is `umiak bundle`: reading one, and what more a binary can do.
func Bundle(w Where, more ...*ucli.Command) *ucli.Command {
	return &ucli.Command{
		Name:        "bundle",
		Usage:       "one file with all that machines without network need",
		Subcommands: append(slices.Clone(more), bundleVerify(w)),
	}
}

func bundleVerify(w Where) *ucli.Command {
	return &ucli.Command{
		Name:      "verify",
		Usage:     "compare the files of a bundle with its list of sums",
		ArgsUsage: "FILE  (or the folder that it was unpacked to)",
		Description: "Finds damage, not malice: the list is not signed. The programs in it are, and install.sh checks that.\n\n" +
			"  umiak bundle verify /media/stick/bundle.tar",
		Flags: w.Flags(Output(), &ucli.StringFlag{Name: "targets", Hidden: true,
			Usage: "for install.sh: what belongs where on a server or an agent"}),
		Action: func(c *ucli.Context) error {
			js, err := AsJSON(c)
			if err != nil {
				return err
			}
			if c.NArg() != 1 {
				return Usagef(c, "bundle verify takes one FILE")
			}
			if role := c.String("targets"); role != "" {
				return bundleTargets(c, w, role == "server")
			}
			all, err := bundle.Verify(c.Args().First())
			if err != nil {
				return err
			}
			if js {
				return PrintJSON(c, all)
			}
			PrintBundle(c, all)
			fmt.Fprintln(c.App.Writer, "all files are as the list of sums has them")
			return nil
		},
	}
}

// bundleTargets prints a line for each file: where it is, a tab, where it belongs.
func bundleTargets(c *ucli.Context, w Where, server bool) error {
	dirs, err := w.Dirs(c)
	if err != nil {
		return err
	}
	all, err := bundle.Targets(c.Args().First(), server, dirs)
	for _, t := range all {
		fmt.Fprintf(c.App.Writer, "%s\t%s\n", t.File, t.Path)
	}
	return err
}

// PrintBundle says what is in a bundle.
func PrintBundle(c *ucli.Context, b bundle.Contents) {
	for _, l := range []struct {
		title string
		names []string
	}{{"programs", b.Programs}, {"images", b.Images}, {"manifests", b.Manifests}, {"config", b.Config}} {
		for _, n := range l.names {
			fmt.Fprintf(c.App.Writer, "%-10s %s\n", l.title, n)
		}
	}
}
