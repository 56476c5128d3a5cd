package withnode

import (
	"context"
	"errors"
	"log/slog"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/process"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/server"
)

// Config describes a server and its node.
type Config struct {
	Server server.Config
	Agent  agent.Config // unused where Server.DisableAgent is set
	// Failing is called with true when the datastore stops taking writes, and with false when it takes them again.
	// May be nil.
	Failing func(bool)
}

// Server is a server and the node on the same machine.
type Server struct {
	server *server.Server
	node   *agent.Agent // nil without a node
}

// New takes the steps that come before the parts run: it waits for an address that other servers can reach and, on a
// machine that joins others, for its admission. prep reports the current step; while the disk is full, New repeats
// them. The data directory must be locked by the caller.
func New(ctx context.Context, cfg Config, prep *process.Preparation, log *slog.Logger) (*Server, error) {
	srv, err := process.AwaitRoom(ctx, prep, log, func() (*server.Server, error) {
		return newServer(ctx, cfg.Server, prep, cfg.Failing, log)
	})
	if err != nil {
		return nil, err
	}
	if cfg.Server.DisableAgent {
		return &Server{server: srv}, nil
	}
	node, err := agent.New(cfg.Agent, srv.Joiner(), log)
	if err != nil {
		return nil, err
	}
	return &Server{srv, node}, nil
}

// newServer makes the server, which the others have admitted where cfg joins them.
func newServer(ctx context.Context, cfg server.Config, prep *process.Preparation, failing func(bool),
	log *slog.Logger) (*server.Server, error) {
	if err := cfg.ClaimName(); err != nil {
		return nil, err
	}
	prep.Step("an address at which the other servers reach this one: plug in the cable, wait for DHCP, or set node-ip or advertise-address")
	addrs, err := server.Addresses(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	prep.Step("the cluster's servers, which take this one in or give it the cluster's keys; the log says what stands in the way")
	members, err := server.Join(ctx, cfg, addrs, log)
	if err != nil {
		return nil, err
	}
	prep.Step("its own keys and settings")
	return server.New(cfg, server.Start{Addresses: addrs, Members: members, Failing: failing}, log)
}

// Parts lists everything that the process runs, in start order.
func (a *Server) Parts() []lifecycle.Part {
	if a.node == nil {
		return a.server.Parts(server.NodeHooks{})
	}
	hooks := server.NodeHooks{Report: a.node.Troubles(), VolumeControllersMade: a.node.VolumeControllersMade}
	return append(a.server.Parts(hooks), a.node.Parts("kube-apiserver")...)
}

// Sources lists the sections of `umiak status`.
func (a *Server) Sources() []status.Source {
	if a.node == nil {
		return a.server.Sources()
	}
	return append(a.server.Sources(), a.node.Sources()...)
}

// Forgive is agent.Agent's. Without a node nothing is forgiven.
func (a *Server) Forgive(component string, reason error) bool {
	return a.node != nil && a.node.Forgive(component, reason)
}

// CheckFile checks a file of settings for servers as a start does, but without what only the machine can answer.
func CheckFile(file string) error {
	var sc server.Config
	var ac agent.Config
	var lc logging.Config
	return errors.Join(config.Check(file, &sc, &ac, &lc, k3s.Keys(false)), sc.ValidateValues(), ac.ValidateValues(), lc.Validate())
}
