package nodecmd

import (
	"fmt"
	"path/filepath"
	"slices"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent/runtime/containerd"
	"github.com/umiak-io/umiak/agent/runtime/crictl"
)

// CalledAs returns the command line of a program that may be called by the name of one of its commands, as through a
// link: with argv[0] /usr/local/bin/ctr, it is `umiak ctr …`.
func CalledAs(program string, argv []string, commands ...string) []string {
	if name := filepath.Base(argv[0]); slices.Contains(commands, name) {
		return append([]string{program, name}, argv[1:]...)
	}
	return argv
}

// Ctr is `umiak ctr`.
func Ctr(w Where) *ucli.Command {
	return tool("ctr", "containerd's own tool, on this node's containerd",
		"  umiak ctr containers list\n  umiak ctr --help",
		func(c *ucli.Context) error {
			socket, err := w.Containerd(c)
			if err != nil {
				return err
			}
			return containerd.Ctr(c.Context, c.Args().Slice(), socket)
		})
}

// Crictl is `umiak crictl`.
func Crictl(w Where) *ucli.Command {
	return tool("crictl", "upstream's tool for pods, containers and images, on this node's container runtime",
		"  umiak crictl ps\n  umiak crictl logs CONTAINER\n  umiak crictl --help",
		func(c *ucli.Context) error {
			socket, _, err := w.Runtime(c)
			if err != nil {
				return err
			}
			return crictl.Run(c.Args().Slice(), socket)
		})
}

// tool returns a command that hands all of its arguments to a program of others.
func tool(name, usage, examples string, run ucli.ActionFunc) *ucli.Command {
	return &ucli.Command{
		Name:            name,
		Usage:           usage,
		ArgsUsage:       "[ARGUMENT...]",
		Description:     "Everything behind it is upstream's " + name + ".\n\n" + examples,
		SkipFlagParsing: true,
		Action: func(c *ucli.Context) error {
			if err := run(c); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		},
	}
}
