package containerd

import (
	"context"

	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
)

// Ctr runs ctr, containerd's own client, with the given arguments (without the program's name), against the node's
// socket and the kubelet's namespace. An error with an ExitCode method carries the exit status of a program that ctr
// ran.
func Ctr(ctx context.Context, args []string, socket string) error {
	cmd := app.New()
	// The default handler ends the process.
	cmd.ExitErrHandler = func(context.Context, *cli.Command, error) {}
	for _, f := range cmd.Flags {
		s, ok := f.(*cli.StringFlag)
		if !ok {
			continue
		}
		switch s.Name {
		case "address":
			// Ignore CONTAINERD_ADDRESS: it may name another containerd of this host.
			s.Value, s.Sources = socket, cli.ValueSourceChain{}
		case "namespace":
			s.Value = Namespace
		}
	}
	return cmd.Run(ctx, append([]string{"ctr"}, args...))
}
