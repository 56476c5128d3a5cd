package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	basecli "k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	"k8s.io/kubectl/pkg/cmd/util"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
)

// kubectlCommand is the real kubectl. It finds the administrator's kubeconfig by itself when neither
// KUBECONFIG nor --kubeconfig says otherwise.
func kubectlCommand(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:            "kubectl",
		Usage:           "the Kubernetes command line tool, as administrator of this cluster",
		SkipFlagParsing: true, // everything behind it is kubectl's
		Action: func(c *cli.Context) error {
			args := append([]string{"kubectl"}, c.Args().Slice()...)
			if own := ownArgs(args[1:]); findsServer(own) {
				dirs, err := where.Dirs(c)
				if err != nil {
					return err
				}
				if err := useAdmin(dirs.AdminKubeconfig(), own); err != nil {
					return err
				}
			}
			// As kubectl's own main does: verbosity counts while the command is still being made.
			_, _ = logs.GlogSetter(cmd.GetLogVerbosity(args)) // a bad -v is reported by the command itself
			streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
			// The discovery rates are those of kubectl's own main.
			flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
				WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams)
			flags.WrapConfigFn = func(cfg *rest.Config) *rest.Config {
				if namesServer(flags, cfg.Host) {
					return cfg
				}
				return neverLocalhost(cfg)
			}
			kubectl := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
				Arguments: args, IOStreams: streams, ConfigFlags: flags,
				PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
			})
			kubectl.SetArgs(slices.Clone(args[1:]))
			if err := basecli.RunNoErrOutput(kubectl); err != nil {
				util.CheckErr(err) // prints as kubectl does and exits
			}
			return nil
		},
	}
}

// ownArgs are the arguments that are kubectl's own: what follows a double dash is the command line of a program in a
// container.
func ownArgs(args []string) []string {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i]
	}
	return args
}

// findsServer reports whether kubectl, with these arguments of its own, is left to find the server by itself.
func findsServer(args []string) bool {
	if os.Getenv("KUBECONFIG") != "" || os.Getenv("KUBERNETES_SERVICE_HOST") != "" { // the second: in a pod
		return false
	}
	return !slices.ContainsFunc(args, func(a string) bool {
		name, _, _ := strings.Cut(a, "=")
		short := len(a) > 1 && a[0] == '-' && a[1] == 's' // -s URL, -s=URL, -sURL
		return name == "--kubeconfig" || name == "--server" || short
	})
}

// useAdmin has kubectl use the administrator's kubeconfig. Where there is none, it has to be the user's own.
func useAdmin(file string, args []string) error {
	switch _, err := os.Stat(file); {
	case err == nil:
		return os.Setenv("KUBECONFIG", file)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("read %s: permission denied; run as root, or set KUBECONFIG", file)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	if _, err := os.Stat(clientcmd.RecommendedHomeFile); err == nil || needsNoServer(args) {
		return nil
	}
	return noServer(filepath.Dir(filepath.Dir(file)))
}

func noServer(dataDir string) error {
	return fmt.Errorf("no server has run here: there is no server/admin.kubeconfig in %s. Run this on a server, or copy that file of a server here, "+
		"put the server's address into it, and set KUBECONFIG to its name; if the data of this machine's server are elsewhere, set UMIAK_DATA_DIR", dataDir)
}

// needsNoServer reports whether a command of kubectl does its work without one.
func needsNoServer(args []string) bool {
	if len(args) == 0 {
		return true
	}
	for _, a := range args {
		if slices.Contains([]string{"-h", "--help", "--client", "--client=true", "--dry-run=client"}, a) {
			return true
		}
	}
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return slices.Contains([]string{"help", "completion", "config", "kustomize", "options", "plugin",
				"__complete", "__completeNoDesc"}, a)
		}
	}
	return true
}

// namesServer reports whether a flag or a kubeconfig names the server at host.
func namesServer(flags *genericclioptions.ConfigFlags, host string) bool {
	if flags.APIServer != nil && *flags.APIServer != "" {
		return true
	}
	raw, err := flags.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return false
	}
	for _, c := range raw.Clusters {
		if c.Server == host {
			return true
		}
	}
	return false
}

// neverLocalhost keeps kubectl from asking whoever listens at the default address of its library, where nothing says
// which server it is to ask.
func neverLocalhost(c *rest.Config) *rest.Config {
	if c.Host == clientcmd.ClusterDefaults.Server && os.Getenv("KUBERNETES_MASTER") == "" {
		c.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no server is known here: run this on a server, or set KUBECONFIG")
		}
	}
	return c
}
