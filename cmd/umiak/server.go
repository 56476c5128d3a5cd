package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	agentcli "github.com/umiak-io/umiak/cmd/internal/nodecmd"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/httpproxy"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/process"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/localadmin"
)

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
			if err := errors.Join(err, sc.ValidateStart(), ac.ValidateValues(), lc.Validate()); err != nil {
				return agentcli.BadConfig(err)
			}
			log, quiet, err := logging.Setup(lc, c.App.ErrWriter)
			if err != nil {
				return err
			}
			agentcli.WarnSettings(log, loaded, &sc, &ac, &lc)
			restore := localadmin.Snapshots{Server: sc, Backup: sc.Snapshots, Etc: agentcli.Etc(), Log: log}
			if sc, err = restore.ForReset(c.Context); err != nil {
				return err
			}
			release, err := process.Claim(sc.Dirs(), agentcli.Etc(), log)
			if err != nil {
				return err
			}
			defer release()
			if err := httpproxy.Exempt(sc.InternalNames()...); err != nil {
				return err
			}
			prep := process.Prepare(c.Context, sc.Dirs(), log)
			defer prep.End()
			srv, err := process.AwaitRoom(c.Context, prep, log, func() (*server.Server, error) {
				return newServer(c.Context, &sc, prep, log, quiet.Muffle)
			})
			if err != nil {
				return err
			}
			p := process.Process{Dirs: sc.Dirs(), Etc: agentcli.Etc(), Log: log, Hush: quiet.Hush,
				Confirm: agentcli.Confirm, Profiles: ac.EnablePprof}
			if sc.DisableAgent {
				p.Parts, p.Sources = srv.Parts(server.NodeHooks{}), srv.Sources()
			} else {
				node, err := agent.New(ac, srv.Joiner(), log)
				if err != nil {
					return err
				}
				hooks := server.NodeHooks{Report: node.Troubles(), VolumeControllersMade: node.VolumeControllersMade}
				p.Forgive = node.Forgive
				p.Parts, p.Sources = srv.Parts(hooks), srv.Sources()
				p.Parts = append(p.Parts, node.Parts("kube-apiserver")...)
				p.Sources = append(p.Sources, node.Sources()...)
			}
			prep.End()
			return p.Run(c.Context)
		},
	}
}

// newServer makes what runs: on a machine that is to join others, a member that they have taken in.
func newServer(ctx context.Context, sc *server.Config, prep *process.Preparation, log *slog.Logger,
	muffle func(bool)) (*server.Server, error) {
	if err := sc.ClaimName(); err != nil {
		return nil, err
	}
	prep.Step("an address at which the other servers reach this one: plug in the cable, wait for DHCP, or set node-ip or advertise-address")
	addrs, err := server.Addresses(ctx, *sc, log)
	if err != nil {
		return nil, err
	}
	prep.Step("the cluster's servers, which take this one in or give it the cluster's keys; the log says what stands in the way")
	members, err := server.Join(ctx, *sc, addrs, log)
	if err != nil {
		return nil, err
	}
	prep.Step("its own keys and settings")
	return server.New(*sc, server.Start{Addresses: addrs, Members: members, Failing: muffle}, log)
}
