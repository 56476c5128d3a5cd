// Command umiak-agent is a node alone: what runs on every machine that is not a server.
package main

import (
	"context"
	"io"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	agentcli "github.com/umiak-io/umiak/agent/cli"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/version"
)

func main() { os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr)) }

func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	where := agentcli.Where{Known: []any{&agent.Config{}, &logging.Config{}}, AgentOnly: true}
	node := agentcli.Agent()
	app := &cli.App{
		Name:        "umiak-agent",
		Usage:       "a node of a Umiak cluster",
		Version:     version.String(),
		Description: node.Description,
		Flags:       node.Flags,
		Action:      node.Action,
		Writer:      stdout, ErrWriter: stderr,
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		ExitErrHandler:       func(*cli.Context, error) {}, // printed below
		Commands:             append(agentcli.Node(where), agentcli.Certificate(where), agentcli.Bundle(where)),
	}
	return agentcli.Exit("umiak-agent", app.RunContext(ctx, argv), stderr)
}
