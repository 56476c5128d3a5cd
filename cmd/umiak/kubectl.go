package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	basecli "k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	"k8s.io/kubectl/pkg/cmd/util"

	agentcli "github.com/umiak-io/umiak/agent/cli"
)

// kubectlCommand is the real kubectl. It finds the administrator's kubeconfig by itself when neither
// KUBECONFIG nor --kubeconfig says otherwise.
func kubectlCommand(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Usage:           "the Kubernetes command line tool, as administrator of this cluster",
		SkipFlagParsing: true, // everything behind it is kubectl's
		Action: func(c *cli.Context) error {
			if os.Getenv("KUBECONFIG") == "" {
				dirs, err := where.Dirs(c)
				if err != nil {
					return err
				}
				switch _, err := os.Stat(dirs.AdminKubeconfig()); {
				case err == nil:
					if err := os.Setenv("KUBECONFIG", dirs.AdminKubeconfig()); err != nil {
						return err
					}
				case errors.Is(err, fs.ErrPermission):
					return fmt.Errorf("read %s: permission denied; run as root, or set KUBECONFIG", dirs.AdminKubeconfig())
				}
			}
			args := append([]string{"kubectl"}, c.Args().Slice()...)
			// As kubectl's own main does: verbosity counts while the command is still being made.
			_, _ = logs.GlogSetter(cmd.GetLogVerbosity(args)) // a bad -v is reported by the command itself
			streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
			opts := cmd.KubectlOptions{
				Arguments: args, IOStreams: streams,
				PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
				// The discovery rates are those of kubectl's own main.
				ConfigFlags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
					WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams),
			}
			kubectl := cmd.NewDefaultKubectlCommandWithArgs(opts)
			kubectl.SetArgs(slices.Clone(args[1:]))
			if err := basecli.RunNoErrOutput(kubectl); err != nil {
				util.CheckErr(err) // prints as kubectl does and exits
			}
			return nil
		},
	}
}
