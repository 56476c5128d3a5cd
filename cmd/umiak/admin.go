package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/layout"
)

// admin is how commands reach the cluster as its administrator: by KUBECONFIG, or as this server's.
func admin(c *cli.Context, where agentcli.Where, name string) (*rest.Config, layout.Dirs, error) {
	dirs, err := where.Dirs(c)
	if err != nil {
		return nil, dirs, err
	}
	file := os.Getenv("KUBECONFIG")
	if file == "" || strings.Contains(file, string(os.PathListSeparator)) {
		file = dirs.AdminKubeconfig()
	}
	rc, err := clientcmd.BuildConfigFromFlags("", file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, dirs, fmt.Errorf("%s is not there: run this on a server, or with KUBECONFIG set", file)
	case err != nil:
		return nil, dirs, fmt.Errorf("read %s: %w; run as root, or set KUBECONFIG", file, err)
	}
	return rest.AddUserAgent(rc, name), dirs, nil
}
