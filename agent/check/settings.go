package check

import (
	"errors"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/runtime/imageshare"
	"github.com/umiak-io/umiak/agent/worker"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/logging"
)

// Settings are those with which a server or a node would start.
type Settings struct {
	Agent   agent.Config
	Logging logging.Config
	// Server returns what the checks need of a server's settings, and what is wrong with them; nil in a program that
	// cannot be a server.
	Server func() (Server, error)
	// AgentOnly leaves out what only a server needs, and checks what only a node without a server of its own needs.
	AgentOnly bool
}

// Server is what the checks need of a server's settings.
type Server struct {
	Port           int
	FlannelBackend string
}

// Config validates the settings as a start does, and returns the Config for the checks of the machine that holds dirs.
// The error names all that is wrong.
func (s Settings) Config(dirs layout.Dirs) (Config, error) {
	s.Agent.DataDir, s.Agent.RunDir = dirs.Data, dirs.Run
	cfg := Config{
		Dirs: dirs, SharePort: imageshare.Port, Registries: s.Agent.PrivateRegistry, CgroupRoot: s.Agent.CgroupRoot,
		NodePort: int(s.Agent.KubeletPort), NodeName: s.Agent.NodeName, WithNodeID: s.Agent.WithNodeID,
		ProtectKernel: s.Agent.ProtectKernel, Runtime: s.Agent.DefaultRuntime, SELinux: s.Agent.SELinux,
	}
	if socket, other := s.Agent.RuntimeSocket(); other {
		cfg.RuntimeSocket, cfg.Registries, cfg.SharePort, cfg.Runtime, cfg.SELinux = socket, "", 0, "", false
	}
	agentOnly := s.AgentOnly || s.Server == nil
	errs := []error{s.Agent.Validate()}
	if agentOnly {
		errs = append(errs, worker.CheckTarget(s.Agent))
		cfg.BalancerPort = int(s.Agent.BalancerPort)
	}
	errs = append(errs, s.Logging.Validate())
	if s.Server != nil {
		server, err := s.Server()
		cfg.Backend = server.FlannelBackend
		if !agentOnly {
			cfg.ServerPort = server.Port
			errs = append(errs, err)
		}
	}
	return cfg, errors.Join(errs...)
}
