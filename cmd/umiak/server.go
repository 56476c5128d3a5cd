package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/process"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/localadmin"
	"github.com/umiak-io/umiak/server/withnode"
)

// serverCommand is `umiak server`.
func serverCommand(w agentcli.Where) *cli.Command {
	var sc server.Config
	var ac agent.Config
	var lc logging.Config
	return &cli.Command{
		Name:  "server",
		Usage: "run a cluster: the control plane and, unless --disable-agent, a node",
		Description: "  umiak server\n" +
			"  umiak server --node-ip 192.168.1.10 --tls-san pi.local --disable NAME\n\n" +
			"Three servers survive the loss of any one; the first keeps its state in etcd, the others join it:\n\n" +
			"  umiak server --cluster-init\n" +
			"  umiak server --server https://FIRST:6443 --token TOKEN       (`umiak token create --kind server` on the first)",
		Flags:       config.Flags(&sc, &ac, &lc, w.Foreign),
		Subcommands: memberCommands(w),
		Action: func(c *cli.Context) error {
			if err := agentcli.NoArgs(c); err != nil {
				return err
			}
			loaded, err := config.Load(c, &sc, &ac, &lc, w.Foreign)
			if v := sc.Verbosity().Add(ac.Verbosity()); v.Level > 0 || len(v.Modules) > 0 {
				lc = lc.WithFlags(v.Level, v.Modules)
			}
			if err := errors.Join(err,
				loaded.Locate(errors.Join(sc.ValidateStart(), ac.ValidateValues(), lc.Validate()))); err != nil {
				return agentcli.BadConfig(err)
			}
			log, libraries, err := logging.Setup(lc, c.App.ErrWriter)
			if err != nil {
				return err
			}
			agentcli.WarnSettings(log, loaded, &sc, &ac, &lc)
			release, err := process.Claim(sc.Dirs(), agentcli.Etc(), log)
			if err != nil {
				return err
			}
			defer release()
			restore := localadmin.Snapshots{Server: sc, Backup: sc.Snapshots, Etc: agentcli.Etc(), Log: log}
			if sc, err = restore.ForReset(c.Context); err != nil {
				return err
			}
			if err := httpproxy.Exempt(sc.InternalNames()...); err != nil {
				return err
			}
			prep := process.Prepare(c.Context, sc.Dirs(), log)
			defer prep.End()
			all, err := withnode.New(c.Context,
				withnode.Config{Server: sc, Agent: ac, Failing: libraries.DatastoreFailing}, prep, log)
			if err != nil {
				return err
			}
			prep.End()
			return process.Process{
				Dirs: sc.Dirs(), Etc: agentcli.Etc(), Log: log, Silence: libraries.Silence, Forgive: all.Forgive,
				Confirm: agentcli.Confirm, Profiles: ac.EnablePprof, Parts: all.Parts(), Sources: all.Sources(),
			}.Run(c.Context)
		},
	}
}
