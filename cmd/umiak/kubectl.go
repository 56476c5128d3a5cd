package main

import (
	"errors"

	"github.com/urfave/cli/v2"
	"k8s.io/kubectl/pkg/cmd/util"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/localadmin/kubectl"
)

// kubectlCommand is `umiak kubectl`.
func kubectlCommand(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:      "kubectl",
		Usage:     "the Kubernetes command line tool, as administrator of this cluster",
		ArgsUsage: "[ARGUMENT...]",
		Description: "Everything behind it is upstream's kubectl. Without KUBECONFIG, --kubeconfig or --server it uses the administrator's\n" +
			"kubeconfig of this machine's server.\n\n  umiak kubectl get nodes\n  umiak kubectl --help",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			err := kubectl.Run(c.Args().Slice(), func() (layout.Dirs, error) { return where.Dirs(c) })
			if failed := new(kubectl.Error); errors.As(err, &failed) {
				util.CheckErr(failed.Err) // prints as kubectl does and exits
			}
			return err
		},
	}
}
