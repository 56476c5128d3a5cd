package nodecmd

import (
	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/internal/kubeclient"
)

// Debug is `umiak debug`.
func Debug(w Where) *ucli.Command {
	return &ucli.Command{
		Name:        "debug",
		Usage:       "explain what this node does",
		Subcommands: []*ucli.Command{debugService(w)},
	}
}

// debugService asks the API with the node's own rights, and the kernel; umiak itself need not run.
func debugService(w Where) *ucli.Command {
	return &ucli.Command{
		Name:      "service",
		Usage:     "explain which rules a Service has on this node, which endpoints it uses, and why",
		ArgsUsage: "[NAMESPACE/]NAME",
		Description: "Compares what the kernel's tables hold with what they should, and counts the connections to each endpoint.\n" +
			"Exits with 1 when the kernel differs.\n\n  umiak debug service web\n  umiak debug service -o json kube-system/kube-dns",
		Flags: w.Flags(Output()),
		Action: func(c *ucli.Context) error {
			js, err := AsJSON(c)
			if err != nil {
				return err
			}
			if c.NArg() != 1 {
				return Usagef(c, "debug service takes one [NAMESPACE/]NAME")
			}
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			client, err := kubeclient.Source{Kubeconfig: dirs.AgentKubeconfig()}.Client("umiak-debug", 0)
			if err != nil {
				return err
			}
			e, err := proxy.ExplainHere(c.Context, client, proxy.ParseName(c.Args().First()), dirs.ProxyGuard())
			if err != nil {
				return err
			}
			if js {
				err = PrintJSON(c, e)
			} else {
				err = e.Print(c.App.Writer)
			}
			if err == nil && e.Wrong() {
				return ucli.Exit("", 1)
			}
			return err
		},
	}
}
