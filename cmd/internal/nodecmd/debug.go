package nodecmd

import (
	"fmt"
	"strings"

	ucli "github.com/urfave/cli/v2"
	authn "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
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
			name := types.NamespacedName{Namespace: metav1.NamespaceDefault, Name: c.Args().First()}
			if ns, n, both := strings.Cut(name.Name, "/"); both {
				name = types.NamespacedName{Namespace: ns, Name: n}
			}
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			cfg, err := clientcmd.BuildConfigFromFlags("", dirs.AgentKubeconfig())
			if err != nil {
				return fmt.Errorf("read this node's kubeconfig: %w", err)
			}
			client, err := kubernetes.NewForConfig(cfg)
			if err != nil {
				return fmt.Errorf("make client: %w", err)
			}
			me, err := client.AuthenticationV1().SelfSubjectReviews().Create(c.Context, &authn.SelfSubjectReview{}, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("ask the API server who this node is: %w", err)
			}
			user := me.Status.UserInfo.Username
			e, err := proxy.Explain(c.Context, client, user[strings.LastIndexByte(user, ':')+1:], name, proxy.ReadGuard(dirs.ProxyGuard()))
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
