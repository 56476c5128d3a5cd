package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/localadmin"
	"github.com/umiak-io/umiak/server/pki"
)

func certificateCommand(w agentcli.Where) *cli.Command {
	return agentcli.Certificate(w, certificateRotate(w), certificateRotateCA(w))
}

// onServer finds the directories and refuses where no server has run.
func onServer(c *cli.Context, w *agentcli.Where) (layout.Dirs, error) {
	if err := localadmin.RequireRoot(); err != nil {
		return layout.Dirs{}, err
	}
	dirs, err := w.Dirs(c)
	if err != nil {
		return dirs, err
	}
	return dirs, localadmin.RequireServer(dirs)
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
		Flags: w.Flags(agentcli.Output(), &cli.BoolFlag{Name: "new-keys",
			Usage: "make new keys as well; umiak must have been stopped"}),
		Action: func(c *cli.Context) error {
			js, err := agentcli.AsJSON(c)
			if err != nil {
				return err
			}
			dirs, err := onServer(c, &w)
			if err != nil {
				return err
			}
			out, err := localadmin.Renew(c.Context, dirs, c.Args().Slice(), c.Bool("new-keys"))
			if err != nil {
				return err
			}
			if js {
				return agentcli.PrintJSON(c, out)
			}
			if out.RenewResult == nil {
				fmt.Fprintf(c.App.Writer, "umiak does not run; it will issue these when it starts: %s\n",
					strings.Join(out.AtNextStart, ", "))
				return nil
			}
			for _, l := range out.Renewed {
				fmt.Fprintf(c.App.Writer, "%s: renewed, ends %s\n", l.Name, l.Ends.UTC().Format(time.DateOnly))
			}
			return nil
		},
	}
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
			&cli.BoolFlag{Name: "force",
				Usage: "finish although nodes, pods or Secrets may need the old ones; on files: work on those of one server of several"},
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
			r := cluster.RotateRequest{Names: c.Args().Slice(), From: c.String("from"), Finish: c.Bool("finish"),
				Force: c.Bool("force"), Status: c.Bool("status")}
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
			out, running, err := localadmin.RotateCA(c.Context, dirs, r)
			if err != nil {
				return err
			}
			if js {
				return agentcli.PrintJSON(c, out)
			}
			printRotation(c.App.Writer, out, running, r.Status)
			return nil
		},
	}
}

// printRotation prints what has been done and what comes next. running tells whether the server of this machine runs.
func printRotation(w io.Writer, out cluster.RotateResult, running, statusOnly bool) {
	for _, n := range out.Finished {
		fmt.Fprintf(w, "%s: finished; the old one is trusted no more\n", n)
	}
	for _, r := range out.UnderWay {
		restarted := "umiak was not restarted since"
		if !r.Restarted.IsZero() {
			restarted = "umiak was restarted " + r.Restarted.UTC().Format(time.DateTime)
		}
		fmt.Fprintf(w, "%s: being replaced since %s; old and new are trusted; %s\n", r.Name,
			r.Begun.UTC().Format(time.DateTime), restarted)
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
			"Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n",
			strings.Join(out.Restart, ", "))
	case statusOnly:
	case running:
		fmt.Fprint(w, "\nNext: restart umiak on each server (`systemctl restart umiak`; pods run on, the API is away for some seconds).\n"+
			"Then restart programs that read the CA only when they start, and copy kubeconfigs on other machines again.\n"+
			"Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n")
	default:
		fmt.Fprint(w, "\nNext: start umiak. Last: `umiak certificate rotate-ca --finish`. Until then old and new are both good.\n")
	}
}
