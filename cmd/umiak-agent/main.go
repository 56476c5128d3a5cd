// Command umiak-agent is a node alone: what runs on every machine that is not a server.
package main

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/termtext"
	"github.com/umiak-io/umiak/internal/version"
)

func main() {
	os.Exit(run(context.Background(), os.Args, termtext.Terminal(os.Stdout), termtext.Terminal(os.Stderr)))
}

// run is main without the process: argv[0] may be a link named after a tool that umiak-agent contains.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	argv = agentcli.CalledAs("umiak-agent", argv, "crictl", "ctr")
	return agentcli.Run(ctx, app(stdout, stderr), argv, stderr)
}

func app(stdout, stderr io.Writer) *cli.App {
	where := agentcli.Where{Known: []any{&agent.Config{}, &logging.Config{}}, Foreign: k3s.Keys(true)}
	node := agentcli.Agent()
	// -v is the setting, as in `umiak agent -v 4`; the library's flag has it as its short name.
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version", DisableDefaultText: true}
	return &cli.App{
		Name:        "umiak-agent",
		Usage:       "a node of a Umiak cluster",
		Version:     version.String(),
		Description: strings.ReplaceAll(node.Description, "umiak agent", "umiak-agent"),
		Flags:       node.Flags,
		Action:      node.Action,
		Writer:      stdout, ErrWriter: stderr,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // run prints and exits
		Commands:             append(agentcli.Node(where), agentcli.Certificate(where), agentcli.Bundle(where)),
	}
}
