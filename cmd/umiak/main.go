// Command umiak is the whole of Umiak in one binary: server, agent, and the tools to look after them.
package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/check"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/termtext"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server"
)

func main() {
	os.Exit(run(context.Background(), os.Args, termtext.Terminal(os.Stdout), termtext.Terminal(os.Stderr)))
}

// run is main without the process: argv[0] may be a link named after a tool that umiak contains.
func run(ctx context.Context, argv []string, stdout, stderr io.Writer) int {
	argv = agentcli.CalledAs("umiak", argv, "kubectl", "crictl", "ctr")
	if filepath.Base(argv[0]) == "umiak-agent" {
		argv = append([]string{"umiak", "agent"}, argv[1:]...)
	}
	return agentcli.Run(ctx, app(stdout, stderr), argv, stderr)
}

func app(stdout, stderr io.Writer) *cli.App {
	var sc server.Config
	where := agentcli.Where{Known: []any{&sc, &agent.Config{}, &logging.Config{}}, Foreign: k3s.Keys(false)}
	where.Server = func() (check.Server, error) {
		return check.Server{Port: int(sc.HTTPSPort), FlannelBackend: sc.FlannelBackend}, sc.Validate()
	}
	return &cli.App{
		Name:    "umiak",
		Usage:   "a light Kubernetes for the edge",
		Version: version.String(),
		Description: "One command on an empty machine is a cluster:\n\n" +
			"  umiak server\n  umiak kubectl get nodes\n\n" +
			"Settings are flags, UMIAK_* variables, or keys in /etc/umiak/config.yaml and config.yaml.d/*.yaml.",
		Writer: stdout, ErrWriter: stderr,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // run prints and exits
		Commands: append([]*cli.Command{serverCommand(where), agentcli.Agent(), kubectlCommand(where),
			tokenCommand(where), snapshotCommand(where),
			certificateCommand(where), secretsEncryptCommand(where, func() string { return sc.EncryptionProvider }),
			agentcli.Bundle(where, bundleCreate(where))},
			nodeCommands(where)...),
	}
}

// nodeCommands are those of every node; a server's can do more.
func nodeCommands(where agentcli.Where) []*cli.Command {
	all := agentcli.Node(where)
	for _, c := range all {
		if c.Name == "upgrade" {
			c.Subcommands = append(c.Subcommands, upgradeCluster(where))
		}
	}
	return all
}
