package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/cluster"
)

// memberCommands are the commands of `umiak server` about the other servers.
func memberCommands(w agentcli.Where) []*cli.Command {
	return []*cli.Command{
		{
			Name:      "forget",
			Usage:     "give up another server that is lost, or that joined and never started",
			ArgsUsage: "NAME|ADDRESS",
			Description: "Run it on a server that works. The lost one is no member any more, its node is deleted and its name is free. A server\n" +
				"that answers is refused, and so is one without which too few would be left.\n\n  umiak server forget s3\n  umiak server forget 10.0.0.3",
			Flags: w.Flags(),
			Action: func(c *cli.Context) error {
				if c.NArg() != 1 {
					return agentcli.Usagef(c,
						"server forget takes one NAME or ADDRESS; `umiak status` lists the members")
				}
				dirs, err := w.Dirs(c)
				if err != nil {
					return err
				}
				out, err := server.ActionForget.Call(c.Context, dirs.ControlSocket(),
					cluster.ForgetRequest{Server: c.Args().First()})
				if err != nil {
					return err
				}
				for _, line := range out.Done {
					if _, err := fmt.Fprintln(c.App.Writer, line); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			Name:      "moved",
			Usage:     "say at which addresses other servers are now, when all have got new ones at once",
			ArgsUsage: "NAME=ADDRESS...",
			Description: "Servers that move one after the other tell each other. When most of them have moved at once, none finds the others:\n" +
				"run this on one of them, with the addresses of enough others. Nothing is restarted.\n\n  umiak server moved s2=10.1.0.2 s3=10.1.0.3",
			Flags: w.Flags(),
			Action: func(c *cli.Context) error {
				if !c.Args().Present() {
					return agentcli.Usagef(c,
						"server moved takes NAME=ADDRESS of each server; `umiak status` lists the members that are missing")
				}
				r, err := cluster.ParseMoved(c.Args().Slice())
				if err != nil {
					return agentcli.Usagef(c, "%v", err)
				}
				dirs, err := w.Dirs(c)
				if err != nil {
					return err
				}
				_, err = server.ActionMoved.Call(c.Context, dirs.ControlSocket(), r)
				return err
			},
		},
	}
}
