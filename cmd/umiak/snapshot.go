package main

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/output"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/backup"
	"github.com/umiak-io/umiak/server/localadmin"
)

// snapshotSettings are the settings that a command about snapshots reads: the server's, with flags for those of
// backups.
type snapshotSettings struct {
	flags struct {
		DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
		RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`
		Backup  backup.Config
	}
	server  server.Config
	agent   agent.Config
	logging logging.Config
}

// command returns an action that reads the settings before it calls do.
func (s *snapshotSettings) command(w agentcli.Where, do func(*cli.Context, localadmin.Snapshots) error) cli.ActionFunc {
	_, foreign := k3s.Snapshots()
	return func(c *cli.Context) error {
		if _, err := config.LoadInstalled(c, &s.flags, &s.server, &s.agent, &s.logging, foreign); err != nil {
			return agentcli.BadConfig(err)
		}
		if err := s.flags.Backup.Validate(); err != nil {
			return agentcli.BadConfig(err)
		}
		dirs, err := w.Dirs(c)
		if err != nil {
			return err
		}
		s.server.DataDir, s.server.RunDir = dirs.Data, dirs.Run
		s.logging.File = "" // the server's
		log, _, err := logging.Setup(s.logging, c.App.ErrWriter)
		if err != nil {
			return err
		}
		return do(c, localadmin.Snapshots{Server: s.server, Backup: s.flags.Backup, Etc: agentcli.Etc(), Log: log})
	}
}

// snapshotCommand is `umiak snapshot`.
func snapshotCommand(where agentcli.Where) *cli.Command {
	var s snapshotSettings
	foreign, _ := k3s.Snapshots()
	flags := func(more ...cli.Flag) []cli.Flag { return append(config.Flags(&s.flags, foreign), more...) }
	return &cli.Command{
		Name:    "snapshot",
		Aliases: []string{"etcd-snapshot"}, // as in k3s
		Usage:   "save the cluster's state to a file, and restore it",
		Description: "A snapshot holds the datastore, the authorities' keys, the encryption configuration and the tokens: all that is\n" +
			"needed to bring the cluster back on a fresh machine. A server makes them by itself, see snapshot-schedule-cron.",
		Subcommands: []*cli.Command{
			{
				Name: "save", Usage: "save a snapshot now", ArgsUsage: "[NAME]",
				Description: "Asks the running server, or reads the datastore of a stopped one. Prints the file's name. Where snapshot-s3-bucket\n" +
					"is set, the file is uploaded as well.\n\n  umiak snapshot save\n  umiak snapshot save before-upgrade",
				Flags: flags(nameFlag()), Action: s.command(where, saveSnapshot),
			},
			{
				Name: "list", Aliases: []string{"ls", "l"}, Usage: "list the snapshots in the folder and in the bucket",
				Description: "  umiak snapshot list\n  umiak snapshot list -o json",
				Flags:       flags(agentcli.Output()), Action: s.command(where, listSnapshots),
			},
			{
				Name: "restore", Usage: "put a snapshot in the place of this machine's server state",
				ArgsUsage: "FILE|NAME",
				Description: "No server may run here; the data directory may be empty. All of the file is verified before anything is touched, and\n" +
					"what was there is kept beside it. Then start the server as usual; with --cluster-init the state moves into etcd.\n" +
					"NAME is one of the folder or else of the bucket, from where it is downloaded.\n\n" +
					"  umiak snapshot restore /mnt/usb/scheduled-pi-20261125T000000Z" + snapshot.Suffix,
				Flags: flags(), Action: s.command(where, restoreSnapshot),
			},
			{
				Name: "schedule", Usage: "show when this server saves snapshots by itself",
				Description: "Reads the settings and the folder; the server need not run. To try another schedule, give it as a flag, then put it\n" +
					"into config.yaml and restart the server.\n\n" +
					"  umiak snapshot schedule\n  umiak snapshot schedule --snapshot-schedule-cron '30 3 * * 1-5'",
				Flags: flags(agentcli.Output()), Action: s.command(where, showSchedule),
			},
			{
				Name: "prune", Usage: "remove all but the newest snapshots of a name", ArgsUsage: "[NAME]",
				Description: "Keeps as many as snapshot-retention says, in the folder and in the bucket. NAME is snapshot-name, " +
					backup.Scheduled + ", if none is given.\n\n  umiak snapshot prune --snapshot-retention 2 " +
					backup.OnDemand,
				Flags: flags(nameFlag()), Action: s.command(where, func(c *cli.Context, sn localadmin.Snapshots) error {
					node, err := s.agent.Name()
					if err != nil {
						return err
					}
					return pruneSnapshots(c, sn, node)
				}),
			},
			{
				Name: "delete", Usage: "remove snapshots from the folder and from the bucket", ArgsUsage: "NAME...",
				Description: "NAME is that of a file, as `umiak snapshot list` shows it. In the bucket, only snapshots of this cluster are\n" +
					"removed.\n\n  umiak snapshot delete " + backup.OnDemand + "-pi-20261125T000000Z" + snapshot.Suffix,
				Flags: flags(), Action: s.command(where, deleteSnapshots),
			},
		},
	}
}

// nameFlag is the name of k3s' command for the argument NAME.
func nameFlag() cli.Flag {
	return &cli.StringFlag{Name: "name", Usage: "the same as NAME"}
}

// snapshotName returns the argument NAME or the flag --name; empty if neither is given.
func snapshotName(c *cli.Context) (string, error) {
	switch {
	case c.NArg() == 1 && c.IsSet("name"):
		return "", agentcli.Usagef(c, "NAME and --name are the same; give one of them")
	case c.NArg() == 1:
		return c.Args().First(), nil
	}
	return c.String("name"), nil
}

func saveSnapshot(c *cli.Context, s localadmin.Snapshots) error {
	name, err := snapshotName(c)
	if err != nil {
		return err
	}
	saved, err := s.Save(c.Context, name)
	if saved != nil {
		fmt.Fprintln(c.App.Writer, saved.Path)
	}
	return err
}

func deleteSnapshots(c *cli.Context, s localadmin.Snapshots) error {
	if !c.Args().Present() {
		return agentcli.Usagef(c, "snapshot delete takes the NAME of a snapshot; `umiak snapshot list` shows them")
	}
	s, err := s.WithBucket(c.Context)
	if err != nil {
		return err
	}
	removed, err := s.Backup.Delete(c.Context, s.Server.Dirs(), c.Args().Slice()...)
	for _, p := range removed {
		fmt.Fprintf(c.App.Writer, "removed %s\n", p)
	}
	return err
}

func listSnapshots(c *cli.Context, s localadmin.Snapshots) error {
	if err := agentcli.NoArgs(c); err != nil {
		return err
	}
	js, err := agentcli.AsJSON(c)
	if err != nil {
		return err
	}
	// Where one of two places cannot be read, those of the other are printed.
	s, secretErr := s.WithBucket(c.Context)
	all, err := s.Backup.List(c.Context, s.Server.Dirs())
	if secretErr != nil {
		err = secretErr
	}
	if js {
		return errors.Join(printSnapshotsJSON(c, all), err)
	}
	return errors.Join(printSnapshots(c, all), err)
}

func restoreSnapshot(c *cli.Context, s localadmin.Snapshots) error {
	if c.NArg() != 1 {
		return agentcli.Usagef(c, "snapshot restore takes one FILE; `umiak snapshot list` shows those in the folder")
	}
	r, err := s.Restore(c.Context, c.Args().First())
	if r.Node != "" {
		fmt.Fprintf(c.App.Writer, "Restored %d keys of %s, saved on %s at revision %d.\n", r.Keys, r.Node,
			r.Time.UTC().Format(time.DateTime), r.Revision)
	}
	if err != nil {
		return err
	}
	if r.Kept != "" {
		fmt.Fprintf(c.App.Writer, "What was here before is in %s.\n", r.Kept)
	}
	fmt.Fprintf(c.App.Writer, "Start `umiak server` now. With --node-name %s this machine takes that node's pods over.\n", r.Node)
	return nil
}

func showSchedule(c *cli.Context, s localadmin.Snapshots) error {
	if err := agentcli.NoArgs(c); err != nil {
		return err
	}
	js, err := agentcli.AsJSON(c)
	if err != nil {
		return err
	}
	p, err := s.Backup.Plan(s.Server.Dirs(), time.Now())
	if err != nil {
		return err
	}
	if js {
		return agentcli.PrintJSON(c, p)
	}
	return printPlan(c, p)
}

// pruneSnapshots removes those of the node with this name.
func pruneSnapshots(c *cli.Context, s localadmin.Snapshots, node string) error {
	name, err := snapshotName(c)
	if err != nil {
		return err
	}
	s, err = s.WithBucket(c.Context)
	if err != nil {
		return err
	}
	removed, err := s.Backup.Prune(c.Context, s.Server.Dirs(), cmp.Or(name, s.Backup.Name, backup.Scheduled), node)
	for _, p := range removed {
		fmt.Fprintf(c.App.Writer, "removed %s\n", p)
	}
	return err
}

func printSnapshots(c *cli.Context, all []backup.Listed) error {
	t := output.NewTable(c.App.Writer, "NAME", "TIME", "KEYS", "REVISION", "SIZE", "DATASTORE", "WHERE", "REMARK")
	for _, e := range all {
		where := strings.Join(e.Where, ",")
		if e.Err != nil {
			fmt.Fprintf(t, "%s\t\t\t\t\t\t%s\tunusable: %v\n", filepath.Base(e.Path), where, errors.Unwrap(e.Err))
			continue
		}
		remark := e.Reason
		if e.Encrypted {
			remark += ", encrypted"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%.1f KiB\t%s\t%s\t%s\n", filepath.Base(e.Path),
			e.Time.UTC().Format("2006-01-02 15:04:05"), e.Keys, e.Revision, float64(e.Size)/1024, e.Backend, where,
			remark)
	}
	return t.Flush()
}

func printSnapshotsJSON(c *cli.Context, all []backup.Listed) error {
	type line struct {
		backup.Listed
		Error string `json:"error,omitempty"`
	}
	out := make([]line, 0, len(all))
	for _, e := range all {
		l := line{Listed: e}
		if e.Err != nil {
			l.Error = e.Err.Error()
		}
		out = append(out, l)
	}
	return agentcli.PrintJSON(c, out)
}

func printPlan(c *cli.Context, p backup.Plan) error {
	const layout = "2006-01-02 15:04 MST"
	t := output.NewTable(c.App.Writer)
	schedule, kept, encrypted, newest := p.Schedule, fmt.Sprintf("the newest %d", p.Retention), "no", "none yet"
	if p.Disabled {
		schedule += ", but disable-snapshots is set"
	}
	if p.Encrypted {
		encrypted = "yes"
	}
	if p.Newest != nil {
		newest = p.Newest.Local().Format(layout)
	}
	fmt.Fprintf(t, "Schedule\t%s\nKept\t%s\nFolder\t%s\nEncrypted\t%s\nNewest\t%s\n", schedule, kept, p.Folder,
		encrypted, newest)
	if p.Bucket != "" {
		fmt.Fprintf(t, "Bucket\t%s\n", p.Bucket)
	}
	for i, w := range p.Waiting {
		name := ""
		if i == 0 {
			name = "To upload"
		}
		fmt.Fprintf(t, "%s\t%s\n", name, filepath.Base(w))
	}
	for i, n := range p.Next {
		name := ""
		if i == 0 {
			name = "Next"
		}
		fmt.Fprintf(t, "%s\t%s\n", name, n.Format(layout))
	}
	return t.Flush()
}
