package main

import (
	"os"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/localadmin"
)

// admin returns how a command reaches the cluster as its administrator, and the directories of this machine's node.
func admin(c *cli.Context, where agentcli.Where, name string) (*rest.Config, layout.Dirs, error) {
	dirs, err := where.Dirs(c)
	if err != nil {
		return nil, dirs, err
	}
	rc, err := localadmin.ClientConfig(dirs, os.Getenv("KUBECONFIG"), name)
	return rc, dirs, err
}
