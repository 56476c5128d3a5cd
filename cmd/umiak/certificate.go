package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/certfiles"
	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/socket"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/pki"
)

func certificateCommand(w agentcli.Where) *cli.Command {
	return agentcli.Certificate(w, certificateRotate(w), certificateRotateCA(w))
}

// needRoot says at once what a file or a socket would say later in worse words.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this is for root: keys are readable by root only")
	}
	return nil
}

// onServer finds the directories and refuses where no server has run.
func onServer(c *cli.Context, w *agentcli.Where) (layout.Dirs, error) {
	if err := needRoot(); err != nil {
		return layout.Dirs{}, err
	}
	dirs, err := w.Dirs(c)
	if err != nil {
		return dirs, err
	}
	if _, err := os.Stat(dirs.ServerPKI()); err != nil {
		return dirs, fmt.Errorf("there is no server in %s: run this on a server, after its first start", dirs.Data)
	}
	return dirs, nil
}

func certificateRotate(w agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:      "rotate",
		Usage:     "issue this server's certificates anew at once",
		ArgsUsage: "[NAME...]",
		Description: "The running umiak issues them and its components take them up; nothing is restarted. Components that are clients\n" +
			"make their connections anew within five minutes, so a session of exec, attach, port-forward or logs -f ends then.\n" +
			"Keys stay the same. Without a running umiak they are issued at its next start, with --new-keys for new keys.\n" +
			"Names are those of `umiak status`; none means all. Certificates are renewed without this, long before they end.\n\n" +
			"  umiak certificate rotate\n  umiak certificate rotate apiserver admin",
		Flags: w.Flags(agentcli.Output(), &cli.BoolFlag{Name: "new-keys", Usage: "make new keys as well; umiak must have been stopped"}),
		Action: func(c *cli.Context) error {
			js, err := agentcli.AsJSON(c)
			if err != nil {
				return err
			}
			dirs, err := onServer(c, &w)
			if err != nil {
				return err
			}
			names := c.Args().Slice()
			if c.Bool("new-keys") {
				return markForRenewal(c, dirs, names, js)
			}
			var out server.RenewResult
			err = control.Call(c.Context, dirs.ControlSocket(), server.ActionRenew, server.RenewRequest{Names: names}, &out)
			if errors.Is(err, socket.ErrNotRunning) {
				return markForRenewal(c, dirs, names, js)
			}
			if err != nil {
				return err
			}
			if js {
				return agentcli.PrintJSON(c, out)
			}
			for _, l := range out.Renewed {
				fmt.Fprintf(c.App.Writer, "%s: renewed, ends %s\n", l.Name, l.Ends.UTC().Format(time.DateOnly))
			}
			return nil
		},
	}
}

// markForRenewal removes certificates of a umiak that does not run; it issues them when it starts.
func markForRenewal(c *cli.Context, dirs layout.Dirs, names []string, js bool) error {
	release, err := instance.Acquire(dirs)
	if err != nil {
		return fmt.Errorf("renew certificates of a umiak that does not run: %w", err)
	}
	defer release()
	list, err := certfiles.Inspect(dirs, time.Now(), 0)
	if err != nil {
		return err
	}
	var known, done []string
	for _, e := range list {
		// Only what lies beside its key can be issued anew, and never a CA.
		key := strings.TrimSuffix(e.File, ".crt") + ".key"
		if e.CA || filepath.Ext(e.File) != ".crt" || slices.Contains(known, e.Name) {
			continue
		}
		if _, err := os.Stat(key); err != nil {
			continue
		}
		known = append(known, e.Name)
		if len(names) > 0 && !slices.Contains(names, e.Name) {
			continue
		}
		if err := os.Remove(e.File); err != nil {
			return err
		}
		if c.Bool("new-keys") {
			if err := os.Remove(key); err != nil {
				return err
			}
		}
		done = append(done, e.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return fmt.Errorf("there is no certificate %q; there are %s", n, strings.Join(known, ", "))
		}
	}
	if js {
		return agentcli.PrintJSON(c, map[string]any{"atNextStart": done})
	}
	fmt.Fprintf(c.App.Writer, "umiak does not run; it will issue these when it starts: %s\n", strings.Join(done, ", "))
	return nil
}

func certificateRotateCA(w agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:      "rotate-ca",
		Usage:     "replace certificate authorities, and the key of ServiceAccount tokens",
		ArgsUsage: "[NAME...]",
		Description: "Two steps, with one restart of umiak between them. Pods are touched by neither.\n\n" +
			"  1. umiak certificate rotate-ca       makes new ones, which sign from now on; old and new are trusted\n" +
			"  2. systemctl restart umiak           each server, one after the other; the API of that one is away for some seconds\n" +
			"  3. umiak certificate rotate-ca --finish     the old ones are trusted no more\n\n" +
			"With several servers each step is run on one of them, while all run; the others follow. What was broken off goes on\n" +
			"when the command is run again, on any server.\n" +
			"Names: " + strings.Join(pki.Rotatable(), ", ") + "; none means all.\n" +
			"--from takes NAME.crt and NAME.key of your own from a folder; NAME.crt may begin with an intermediate and has to\n" +
			"hold all certificates up to its root.\n\n" +
			"  umiak certificate rotate-ca server-ca\n  umiak certificate rotate-ca --from /root/our-ca client-ca\n  umiak certificate rotate-ca --status",
		Flags: w.Flags(agentcli.Output(),
			&cli.StringFlag{Name: "from", Usage: "folder with your own pairs"},
			&cli.BoolFlag{Name: "finish", Usage: "stop trusting the old ones"},
			&cli.BoolFlag{Name: "force", Usage: "finish although nodes, pods or Secrets may need the old ones; on files: work on those of one server of several"},
			&cli.BoolFlag{Name: "status", Usage: "only tell which rotations are under way"}),
		Action: func(c *cli.Context) error {
			js, err := agentcli.AsJSON(c)
			if err != nil {
				return err
			}
			dirs, err := onServer(c, &w)
			if err != nil {
				return err
			}
			r := cluster.RotateRequest{Names: c.Args().Slice(), From: c.String("from"), Finish: c.Bool("finish"), Force: c.Bool("force"), Status: c.Bool("status")}
			if r.Status && (r.Finish || r.From != "" || len(r.Names) > 0) {
				return agentcli.Usagef(c, "--status changes nothing and goes with nothing else")
			}
			if r.From != "" {
				if r.Finish {
					return agentcli.Usagef(c, "--from is for the first step, --finish is the last one")
				}
				if r.From, err = filepath.Abs(r.From); err != nil {
					return err
				}
			}
			if r.Finish && !c.Bool("force") {
				if err := clientsKnow(c.Context, dirs, r.Names); err != nil {
					return err
				}
			}
			out, running, err := rotateCA(c, dirs, r)
			if err != nil {
				return explainRotation(err)
			}
			if js {
				return agentcli.PrintJSON(c, out)
			}
			printRotation(c.App.Writer, out, running, r.Status)
			return nil
		},
	}
}

// rotateCA has the running umiak do it, or does it on the files where none runs.
func rotateCA(c *cli.Context, dirs layout.Dirs, r cluster.RotateRequest) (out cluster.RotateResult, running bool, err error) {
	err = control.Call(c.Context, dirs.ControlSocket(), server.ActionRotate, r, &out)
	if !errors.Is(err, socket.ErrNotRunning) {
		return out, true, err
	}
	release, err := instance.Acquire(dirs)
	if err != nil {
		return out, false, fmt.Errorf("umiak runs but does not answer: %w", err)
	}
	defer release()
	out, err = cluster.RotateFiles(dirs, r)
	return out, false, err
}

// explainRotation adds what to do; the errors of a running umiak arrive as text.
func explainRotation(err error) error {
	switch s := err.Error(); {
	case strings.Contains(s, pki.ErrNoRestart.Error()):
		return fmt.Errorf("%w: `systemctl restart umiak` (pods run on), then this again", err)
	case strings.Contains(s, "goes on with it"):
	case strings.Contains(s, pki.ErrUnderWay.Error()):
		return fmt.Errorf("%w: restart umiak if that was not done, then `umiak certificate rotate-ca --finish`", err)
	}
	return err
}

func printRotation(w io.Writer, out cluster.RotateResult, running, statusOnly bool) {
	for _, n := range out.Finished {
		fmt.Fprintf(w, "%s: finished; the old one is trusted no more\n", n)
	}
	for _, r := range out.UnderWay {
		restarted := "umiak was not restarted since"
		if !r.Restarted.IsZero() {
			restarted = "umiak was restarted " + r.Restarted.UTC().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s: being replaced since %s; old and new are trusted; %s\n", r.Name, r.Begun.UTC().Format(time.DateTime), restarted)
	}
	for _, n := range out.Announced {
		fmt.Fprintf(w, "%s: announced; the old one signs until all servers trust the new one\n", n)
	}
	if len(out.Behind) > 0 {
		fmt.Fprintf(w, "\nThese servers have not taken this over: %s. Start those that are down, or give them up (`umiak server forget NAME`).\n", strings.Join(out.Behind, ", "))
	}
	switch {
	case len(out.Announced) > 0:
		fmt.Fprint(w, "\nNext: `umiak certificate rotate-ca` goes on with it.\n")
	case len(out.UnderWay) == 0 && len(out.Finished) == 0:
		fmt.Fprintln(w, "no rotation is under way")
	case len(out.Finished) > 0:
		fmt.Fprint(w, "\nKubeconfigs that were copied to other machines before the rotation do not work any more: copy them again.\n"+
			"Join tokens of before do not work any more if server-ca was replaced: make new ones.\n")
	case len(out.Restart) > 0:
		fmt.Fprintf(w, "\nNext: restart umiak on these servers, one after the other (`systemctl restart umiak`; pods run on): %s\n"+
			"Then restart programs that read the CA only when they start, and copy kubeconfigs on other machines again.\n"+
			"Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n", strings.Join(out.Restart, ", "))
	case statusOnly:
	case running:
		fmt.Fprint(w, "\nNext: restart umiak on each server (`systemctl restart umiak`; pods run on, the API is away for some seconds).\n"+
			"Then restart programs that read the CA only when they start, and copy kubeconfigs on other machines again.\n"+
			"Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n")
	default:
		fmt.Fprint(w, "\nNext: start umiak. Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n")
	}
}

// clientsKnow makes sure that nothing in the cluster needs the old ones, as far as the cluster tells.
func clientsKnow(ctx context.Context, dirs layout.Dirs, names []string) error {
	if !instance.Running(dirs) {
		return nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", dirs.AdminKubeconfig())
	if err != nil {
		return fmt.Errorf("read the administrator's kubeconfig: %w", err)
	}
	api, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	meant := func(name string) bool { return len(names) == 0 || slices.Contains(names, name) }
	if meant(string(pki.ServerCA)) {
		if err := podsKnowCA(ctx, api, filepath.Join(dirs.ServerPKI(), string(pki.ServerCA)+".crt")); err != nil {
			return err
		}
	}
	if meant(pki.ServiceAccount) {
		return noOldTokens(ctx, api, filepath.Join(dirs.ServerPKI(), "service-account.pub"))
	}
	return nil
}

// podsKnowCA looks at each namespace's copy of the CA, which the controller manager writes after a restart.
func podsKnowCA(ctx context.Context, api kubernetes.Interface, file string) error {
	want, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(want), "-----END CERTIFICATE-----")
	list, err := api.CoreV1().ConfigMaps(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=kube-root-ca.crt"})
	if err != nil {
		return fmt.Errorf("ask whether pods know the new CA (--force does without): %w", err)
	}
	var not []string
	for _, m := range list.Items {
		if !strings.Contains(m.Data["ca.crt"], first) {
			not = append(not, m.Namespace)
		}
	}
	if len(not) > 0 {
		return fmt.Errorf("the namespaces %s do not have the new CA yet (ConfigMap kube-root-ca.crt): it comes some seconds after umiak was restarted; try again then", strings.Join(not, ", "))
	}
	return nil
}

// noOldTokens looks for Secrets with tokens that the present key has not signed: nobody renews those.
func noOldTokens(ctx context.Context, api kubernetes.Interface, file string) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b, _ := pem.Decode(raw)
	if b == nil {
		return fmt.Errorf("%s holds no key", file)
	}
	sum := sha256.Sum256(b.Bytes)
	kid := base64.RawURLEncoding.EncodeToString(sum[:]) // as Kubernetes names keys
	opts := metav1.ListOptions{Limit: 500, FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken)}
	var old []string
	for {
		list, err := api.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, opts)
		if err != nil {
			return fmt.Errorf("look for tokens of the old key (--force does without): %w", err)
		}
		for _, s := range list.Items {
			head, _, _ := strings.Cut(string(s.Data[corev1.ServiceAccountTokenKey]), ".")
			var h struct {
				Kid string `json:"kid"`
			}
			if raw, err := base64.RawURLEncoding.DecodeString(head); err == nil && json.Unmarshal(raw, &h) == nil && h.Kid != kid {
				old = append(old, s.Namespace+"/"+s.Name)
			}
		}
		if opts.Continue = list.Continue; opts.Continue == "" {
			break
		}
	}
	if len(old) > 0 {
		return fmt.Errorf("these Secrets hold ServiceAccount tokens of the old key, and whoever uses them would be locked out: %s; delete them and make them anew, or use --force", strings.Join(old, ", "))
	}
	return nil
}
