package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/agent/join"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/config/k3s"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/token"
)

// What the node uses of its membership beyond agent.Joiner.
var (
	_ agent.Backend = (*join.Joiner)(nil)
	_ agent.Earlier = (*join.Joiner)(nil)
	_ agent.Facts   = (*join.Joiner)(nil)
	_ agent.Servers = (*join.Joiner)(nil)
	_ agent.Taints  = (*join.Joiner)(nil)
)

// Target is the cluster to join.
type Target struct {
	Server string      // HOST:PORT
	Token  token.Token // zero without one: a node that has joined before starts without
}

// TargetOf reads the settings server, token and token-file. It returns all that is wrong with them.
func TargetOf(cfg agent.Config) (t Target, err error) {
	var errs []error
	if cfg.Server == "" {
		errs = append(errs, errors.New("server: not set; it is the URL of a server to join, as https://10.0.0.1:6443"))
	} else if t.Server, err = joinclient.Address(cfg.Server); err != nil {
		errs = append(errs, fmt.Errorf("server: %w", err))
	}
	switch text, err := token.FromSettings(cfg.Token, cfg.TokenFile); {
	case err != nil:
		errs = append(errs, fmt.Errorf("token-file: %w", err))
	case text == "" && cfg.TokenFile != "":
		errs = append(errs, fmt.Errorf("token-file: %s is empty", cfg.TokenFile))
	case text != "":
		if t.Token, err = token.Parse(text); err != nil {
			errs = append(errs, fmt.Errorf("token: this is not a token: %w", err))
		}
	}
	return t, errors.Join(errs...)
}

// CheckTarget checks the settings of TargetOf where any of them is set: a machine may be checked before it is decided
// what it joins.
func CheckTarget(cfg agent.Config) error {
	if cfg.Server == "" && cfg.Token == "" && cfg.TokenFile == "" {
		return nil
	}
	_, err := TargetOf(cfg)
	return err
}

// CheckFile checks a file of settings for agents as a start does, but without what only the machine can answer.
func CheckFile(file string) error {
	var cfg agent.Config
	var lc logging.Config
	return errors.Join(config.Check(file, &cfg, &lc, k3s.Keys(true)), cfg.ValidateValues(), lc.Validate())
}

// Worker is a node whose servers are other machines.
type Worker struct {
	servers    *apibalancer.Balancer
	membership *join.Joiner
	node       *agent.Agent
}

// New returns a Worker that joins t. The data directory must be locked by the caller.
func New(cfg agent.Config, t Target, log *slog.Logger) (*Worker, error) {
	dirs := cfg.Dirs()
	if err := os.MkdirAll(dirs.Agent(), 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	local := net.JoinHostPort("127.0.0.1", cfg.BalancerPort.String())
	servers, err := apibalancer.New(apibalancer.Config{Listen: local, File: dirs.Servers(), Given: t.Server, Log: log})
	if err != nil {
		return nil, err
	}
	membership, err := join.New(join.Config{
		Dirs: dirs, Server: t.Server, Token: t.Token, Local: local, Balancer: servers, Log: log,
	})
	if err != nil {
		return nil, err
	}
	node, err := agent.New(cfg, membership, log)
	if err != nil {
		return nil, err
	}
	return &Worker{servers, membership, node}, nil
}

// Parts lists everything that the Worker runs, in start order.
func (w *Worker) Parts() []lifecycle.Part {
	parts := []lifecycle.Part{w.node.Restart(lifecycle.Part{Name: "servers", Run: w.servers.Run})}
	parts = append(parts, w.node.Parts("servers")...)
	return append(parts, w.node.Restart(lifecycle.Part{Name: "membership", After: []string{"join"},
		Run: w.membership.Run}))
}

// Sources lists the sections of `umiak status`.
func (w *Worker) Sources() []status.Source {
	return append([]status.Source{w.membership.Section, w.servers.Section}, w.node.Sources()...)
}

// Forgive is agent.Agent's.
func (w *Worker) Forgive(component string, reason error) bool {
	return w.node.Forgive(component, reason)
}
