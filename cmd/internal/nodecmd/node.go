package nodecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/check"
	"github.com/umiak-io/umiak/agent/cleanup"
	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/serviceroute"
	"github.com/umiak-io/umiak/agent/uninstall"
	"github.com/umiak-io/umiak/agent/upgrade"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/logging"
)

// Node are the commands that look after a node.
func Node(w Where) []*ucli.Command {
	return []*ucli.Command{Status(w), Check(w), Settings(w), Images(w), Crictl(w), Ctr(w), Cleanup(w), Upgrade(w),
		Uninstall(w), Directories(w), Debug(w), Completion()}
}

// Check is `umiak check`.
func Check(w Where) *ucli.Command {
	return &ucli.Command{
		Name:    "check",
		Aliases: []string{"check-config"}, // as in k3s
		Usage:   "tell what this machine and its kernel lack",
		Description: "Checks the settings as a start does, and tries for real what a node needs, in a network namespace that is thrown away.\n" +
			"Changes nothing. Exits with 1 when something is missing, with 2 when settings cannot be used.\n\n" +
			"  umiak check\n  umiak check --node-ip 192.168.1.10 --kubelet-arg max-pods=50\n  umiak check -o json",
		Flags: append(config.Flags(slices.Concat([]any{&w}, w.Known, []any{w.Foreign.Long()})...), Output(),
			&ucli.BoolFlag{Name: "agent-only", Usage: "do not look at what only a server needs"}),
		Action: Prints(func(c *ucli.Context, js bool) error {
			s, unread := w.load(c)
			dirs, err := w.find(s, instance.Running)
			if err != nil {
				return err
			}
			cfg, err := w.checked(c.Bool("agent-only")).Config(dirs)
			if err = errors.Join(unread, s.Locate(err)); err != nil {
				return BadConfig(err)
			}
			cfg.Exposed = s.Exposed
			cfg.Remarks = slices.Concat(remarks(s, w.ofProgram(c.Bool("agent-only"))), s.Unused)
			results := check.Run(c.Context, cfg)
			show := check.Print
			if js {
				show = check.PrintJSON
			}
			if err := show(c.App.Writer, results); err != nil {
				return err
			}
			if !check.Fit(results) {
				return ucli.Exit("", 1)
			}
			return nil
		}),
	}
}

// checked returns the settings in Known for the checks.
func (w *Where) checked(agentOnly bool) check.Settings {
	s := check.Settings{Server: w.Server, AgentOnly: agentOnly}
	for _, known := range w.Known {
		switch cfg := known.(type) {
		case *agent.Config:
			s.Agent = *cfg
		case *logging.Config:
			s.Logging = *cfg
		}
	}
	return s
}

// Cleanup is `umiak cleanup`.
func Cleanup(w Where) *ucli.Command {
	return &ucli.Command{
		Name:    "cleanup",
		Aliases: []string{"kill-all", "killall"}, // k3s has a script of that name
		Usage:   "stop all pods of this node and remove what it put on the machine",
		Description: "Stops every pod and removes the mounts, network namespaces, interfaces, nftables tables and cgroups that this\n" +
			"node made, and puts kernel settings back. umiak must have been stopped. May be run again.\n" +
			"The cluster's state, images and volumes stay unless --purge is given.\n\n  umiak cleanup\n  umiak cleanup --purge",
		Flags: w.Flags(&ucli.BoolFlag{Name: "purge",
			Usage: "remove the data directory as well: the cluster's state, images, volumes, identity"}),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			dirs, err := w.StoppedDirs(c)
			if err != nil {
				return err
			}
			return ifInterrupted(removeNode(c.Context, dirs, c.Bool("purge"), c.App.Writer),
				"run it again, before umiak is started: it removes the rest")
		},
	}
}

// removeNode is what cleanup and uninstall do with a stopped node.
func removeNode(ctx context.Context, dirs layout.Dirs, purge bool, out io.Writer) error {
	return cleanup.Run(ctx, cleanup.Config{
		Dirs: dirs, Purge: purge, Etc: Etc(), Out: out,
		Also: []func(context.Context) error{dns.Cleanup, serviceroute.Cleanup},
	})
}

// Upgrade is `umiak upgrade`.
func Upgrade(w Where) *ucli.Command {
	return &ucli.Command{
		Name:  "upgrade",
		Usage: "bring this node to another version, or back if that does not become ready",
		Description: "Runs the install.sh that installed this node: it checks the release's signature, keeps all settings, and starts the\n" +
			"new version. When that does not become ready, the old one is put back. Pods run on all the while. In a cluster\n" +
			"of more nodes: one after the other, servers first.\n\n" +
			"  umiak upgrade --version v1.37.3+umiak1 --dry-run\n  umiak upgrade --version v1.37.3+umiak1\n  umiak upgrade --from /media/stick/umiak-v1.37.3+umiak1-linux-arm64.tar",
		Flags: w.Flags(
			&ucli.StringFlag{Name: "version", Usage: "a release, where install.sh found the one that runs"},
			&ucli.StringFlag{Name: "from", Usage: "archive of a release, a bundle, or the folder of either"},
			&ucli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
			&ucli.BoolFlag{Name: "allow-older", Usage: "also to a release that is older than the one that runs"},
			&ucli.StringSliceFlag{Name: "source", Hidden: true,
				Usage: "with --asked: a place of releases that this node's settings allow"},
			&ucli.BoolFlag{Name: "asked", Hidden: true, Usage: "do what the cluster has asked of this node"}),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			dirs, err := w.Dirs(c)
			if err != nil {
				return err
			}
			cfg := upgrade.Config{Etc: Etc(), Dirs: dirs, Lock: dirs.UpgradeLock(),
				Version: c.String("version"), From: c.String("from"), DryRun: c.Bool("dry-run"),
				AllowOlder: c.Bool("allow-older"), Sources: c.StringSlice("source"), Out: c.App.Writer}
			if c.Bool("asked") {
				return upgrade.Asked(c.Context, cfg, dirs.Upgrade())
			}
			return ifInterrupted(upgrade.Run(c.Context, cfg),
				"the version and the settings of before are installed, unless install.sh printed otherwise")
		},
	}
}

// Uninstall is `umiak uninstall`.
func Uninstall(w Where) *ucli.Command {
	return &ucli.Command{
		Name:  "uninstall",
		Usage: "take back what install.sh did, with the cluster's state and settings",
		Description: "Stops the service, does what `cleanup --purge` does, and removes /etc/umiak, the service's unit and the programs.\n" +
			"Without --yes it only says what it would do. On a cluster of more nodes, `kubectl drain` and `kubectl delete node` come first.\n\n" +
			"  umiak uninstall\n  umiak uninstall --yes\n  umiak uninstall --yes --keep-data",
		Flags: w.Flags(&ucli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do it"},
			&ucli.BoolFlag{Name: "keep-data",
				Usage: "leave the data directory and the settings, for another installation"}),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			dirs, err := w.StoppedDirs(c)
			if err != nil {
				return err
			}
			nodes, err := uninstall.NodesOf(Etc(), dirs)
			if err != nil {
				return err
			}
			cfg := uninstall.Config{
				Etc: Etc(), Nodes: nodes, Keep: c.Bool("keep-data"), Command: uninstall.Command,
				SettingsRead: uninstall.SettingsRead, Out: c.App.Writer,
				Cleanup: func(ctx context.Context, d layout.Dirs, purge bool) error {
					return removeNode(ctx, d, purge, c.App.Writer)
				},
			}
			if c.Bool("yes") {
				return ifInterrupted(uninstall.Run(c.Context, cfg),
					"the service is stopped or being stopped; run it again: it removes the rest, and this program last")
			}
			files, err := uninstall.Plan(cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "would stop the service and all pods, and remove:\n  %s\n",
				strings.Join(files, "\n  "))
			return ucli.Exit("nothing was done; add --yes to do it", 1)
		},
	}
}

// Directories is `umiak directories`, for install.sh: the unit waits for the disk that has the data.
func Directories(w Where) *ucli.Command {
	return &ucli.Command{
		Name:   "directories",
		Usage:  "print the data directory and the run directory that the settings name, a line each",
		Hidden: true,
		Flags:  w.Flags(),
		Action: func(c *ucli.Context) error {
			if err := NoArgs(c); err != nil {
				return err
			}
			dirs, err := w.StoppedDirs(c)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.App.Writer, "%s\n%s\n", dirs.Data, dirs.Run)
			return nil
		},
	}
}
