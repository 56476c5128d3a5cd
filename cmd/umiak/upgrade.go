package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/output"
	upgradesapi "github.com/umiak-io/umiak/internal/upgrades"
	"github.com/umiak-io/umiak/internal/version"
	"github.com/umiak-io/umiak/server/upgrades"
)

// upgradeCluster is `umiak upgrade cluster`.
func upgradeCluster(where agentcli.Where) *cli.Command {
	return &cli.Command{
		Name:  "cluster",
		Usage: "bring all nodes to another version, one at a time, servers first",
		Description: "Makes the object Upgrade NAME, by which the servers ask one node after the other to upgrade, and shows how it goes. A node\n" +
			"that does not become ready puts its old version back, and no other is touched; the same command again tries again.\n" +
			"It goes on when this command is interrupted, and when a server restarts. Without --version it shows how it goes.\n\n" +
			"  umiak upgrade cluster --version v1.37.3+umiak1 --dry-run\n  umiak upgrade cluster --version v1.37.3+umiak1\n" +
			"  umiak upgrade cluster --version v1.37.3+umiak1 --node-selector site=lab --name lab\n  umiak upgrade cluster",
		Flags: where.Flags(agentcli.Output(),
			&cli.StringFlag{Name: "version", Usage: "a release"},
			&cli.StringFlag{Name: "name", Value: "cluster", Usage: "of the Upgrade"},
			&cli.StringFlag{Name: "source",
				Usage: "where nodes find releases, if not where they were installed from; their setting upgrade-sources has to allow it"},
			&cli.StringFlag{Name: "node-selector", Usage: "only nodes with these labels"},
			&cli.BoolFlag{Name: "drain", Usage: "move the pods of each node away first; without it they run on"},
			&cli.BoolFlag{Name: "ignore-disruption-budgets",
				Usage: "do not wait for PodDisruptionBudgets that allow no disruption"},
			&cli.BoolFlag{Name: "detach", Usage: "do not wait until it is done"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say in which order nodes would be upgraded, and do nothing"}),
		Action: agentcli.Prints(func(c *cli.Context, js bool) error {
			rc, _, err := admin(c, where, "umiak-upgrade")
			if err != nil {
				return err
			}
			var u upgrades.Client
			if u.Client, err = kubernetes.NewForConfig(rc); err == nil {
				u.Dynamic, err = dynamic.NewForConfig(rc)
			}
			if err != nil {
				return fmt.Errorf("make client: %w", err)
			}
			name := c.String("name")
			if v := c.String("version"); v != "" {
				spec, err := wanted(c, v)
				if err != nil {
					return err
				}
				if c.Bool("dry-run") {
					return preview(c, u, spec, js)
				}
				if err := u.Want(c.Context, name, spec); err != nil {
					return err
				}
				if c.Bool("detach") {
					return nil
				}
			} else if is, err := u.Get(c.Context, name); err != nil {
				return err
			} else if is == nil {
				return fmt.Errorf("there is no Upgrade %s: --version makes one", name)
			}
			return follow(c, u, name, js)
		}),
	}
}

// wanted is what the flags ask for.
func wanted(c *cli.Context, release string) (upgradesapi.Spec, error) {
	spec := upgradesapi.Spec{Version: release, Source: c.String("source"), Drain: c.Bool("drain"),
		IgnoreDisruptionBudgets: c.Bool("ignore-disruption-budgets")}
	if _, err := version.Minor(release); err != nil {
		return spec, fmt.Errorf("--version: %w", err)
	}
	if s := c.String("node-selector"); s != "" {
		var err error
		if spec.NodeSelector, err = upgrades.ParseSelector(s); err != nil {
			return spec, fmt.Errorf("--node-selector: %w", err)
		}
	}
	return spec, nil
}

// follow shows every step, as a line or as a JSON object.
func follow(c *cli.Context, u upgrades.Client, name string, js bool) error {
	var printed error
	err := u.Follow(c.Context, name, func(s upgradesapi.Status) {
		if js {
			printed = errors.Join(printed, agentcli.PrintJSON(c, s))
			return
		}
		fmt.Fprintf(c.App.Writer, "%d of %d  %-9s  %s\n", s.Done, s.Nodes, s.Phase, s.Message)
	})
	if c.Context.Err() != nil {
		return fmt.Errorf("not waited for any longer; it goes on, and umiak upgrade cluster --name %s shows how", name)
	}
	return errors.Join(err, printed)
}

func preview(c *cli.Context, u upgrades.Client, spec upgradesapi.Spec, js bool) error {
	nodes, first, err := u.Preview(c.Context, spec)
	if err != nil {
		return err
	}
	if js {
		err = agentcli.PrintJSON(c, struct {
			Nodes []upgrades.Planned `json:"nodes"`
			First upgradesapi.Status `json:"first"`
		}{nodes, first})
	} else {
		err = printUpgrade(c.App.Writer, nodes, first, spec.Version)
	}
	if err == nil && first.Phase == upgradesapi.Failed {
		return errors.New(first.Message)
	}
	return err
}

func printUpgrade(w io.Writer, nodes []upgrades.Planned, first upgradesapi.Status, version string) error {
	t := output.NewTable(w, "NODE", "ROLE", "VERSION", "WOULD")
	for _, n := range nodes {
		would := "go to " + version
		switch {
		case n.Done:
			would = "stay"
		case !n.Ready:
			would += " when it is ready again"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", n.Node, n.Role, n.Version, would)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "first: %s\n", first.Message)
	return err
}
