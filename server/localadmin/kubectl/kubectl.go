package kubectl

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

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	basecli "k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"

	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

// Run runs kubectl with args on the streams of this process. Where neither a flag nor the environment names a server or
// a kubeconfig, it sets KUBECONFIG to the administrator's kubeconfig in the directories that dirs returns.
func Run(args []string, dirs func() (layout.Dirs, error)) error {
	if own := ownArgs(args); findsServer(own) {
		d, err := dirs()
		if err != nil {
			return err
		}
		if err := useAdmin(d.AdminKubeconfig(), own); err != nil {
			return err
		}
		if err := checkRunning(d, own); err != nil {
			return err
		}
	}
	argv := append([]string{"kubectl"}, args...)
	// As kubectl's own main does: verbosity counts while the command is still being made.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(argv)) // a bad -v is reported by the command itself
	streams := genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr}
	// The discovery rates are those of kubectl's own main.
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
		WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams)
	flags.WrapConfigFn = func(cfg *rest.Config) *rest.Config {
		if namesServer(flags, cfg.Host) {
			return cfg
		}
		return refuseDefaultServer(cfg)
	}
	command := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
		Arguments: argv, IOStreams: streams, ConfigFlags: flags,
		PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
	})
	command.SetArgs(slices.Clone(args))
	if err := basecli.RunNoErrOutput(command); err != nil {
		return &Error{err}
	}
	return nil
}

// Error is a failure of kubectl itself, which kubectl prints in a form of its own.
type Error struct{ Err error }

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns kubectl's error.
func (e *Error) Unwrap() error { return e.Err }

// ownArgs returns the arguments of kubectl itself: a double dash begins the command line of a program in a container.
func ownArgs(args []string) []string {
	if i := slices.Index(args, "--"); i >= 0 {
		return args[:i]
	}
	return args
}

// findsServer reports whether neither args nor the environment name a server or a kubeconfig.
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

// useAdmin sets KUBECONFIG to the administrator's kubeconfig. Without that file it returns an error, unless the user
// has a kubeconfig in the home folder or the command needs no server.
func useAdmin(file string, args []string) error {
	switch _, err := os.Stat(file); {
	case err == nil:
		return os.Setenv("KUBECONFIG", file)
	case errors.Is(err, fs.ErrPermission):
		if _, err := os.Stat(clientcmd.RecommendedHomeFile); err == nil {
			return nil // the user's own
		}
		return fmt.Errorf("read %s: permission denied; run as root, or set KUBECONFIG", file)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	if _, err := os.Stat(clientcmd.RecommendedHomeFile); err == nil || needsNoServer(args) {
		return nil
	}
	return noServer(filepath.Dir(filepath.Dir(file)))
}

// checkRunning returns an error where kubectl would ask the server of this machine, and that does not run.
func checkRunning(d layout.Dirs, args []string) error {
	if os.Getenv("KUBECONFIG") != d.AdminKubeconfig() || needsNoServer(args) || instance.Running(d) {
		return nil
	}
	return fmt.Errorf("the server of this machine (data-dir %s) does not run: start it with `systemctl start umiak` or `umiak server`; "+
		"its log has why it ended. To ask another server, set KUBECONFIG", d.Data)
}

func noServer(dataDir string) error {
	return fmt.Errorf("no server has run here: there is no server/admin.kubeconfig in %s. Run this on a server, or copy that file of a server here, "+
		"put the server's address into it, and set KUBECONFIG to its name; if the data of this machine's server are elsewhere, set UMIAK_DATA_DIR", dataDir)
}

// needsNoServer reports whether a command of kubectl works without a server.
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

// refuseDefaultServer makes connections fail where c names only the default of kubectl's library, localhost:8080: any
// user of this machine can listen there.
func refuseDefaultServer(c *rest.Config) *rest.Config {
	if c.Host == clientcmd.ClusterDefaults.Server && os.Getenv("KUBERNETES_MASTER") == "" {
		c.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no server is known here: run this on a server, or set KUBECONFIG")
		}
	}
	return c
}
