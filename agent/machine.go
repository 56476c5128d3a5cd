package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/runtime/images"
)

// machine is what the parts of a node know of the machine that they run on.
type machine struct {
	journal *host.Journal
	cgroup  host.Cgroup
	caps    host.Capabilities
	oom     int // oom_score_adj of this process
}

// runMachine looks at the machine. Everything that touches it waits for this; what is wrong with it that the node can
// start with nevertheless is an error after it was ready.
func (a *Agent) runMachine(ctx context.Context, ready func()) error {
	if a.machine.Load() == nil {
		m, err := a.look()
		if err != nil {
			return err
		}
		a.machine.Store(m)
	}
	ready()
	if err := host.TryHostsFile(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (a *Agent) look() (*machine, error) {
	if err := errors.Join(os.MkdirAll(a.dirs.Agent(), 0o700), images.MakeFolder(a.dirs.Images())); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	m := &machine{}
	var errs [4]error
	m.journal, errs[0] = host.OpenJournal(a.dirs.NodeState())
	m.cgroup, errs[1] = host.DetectCgroup(a.cfg.CgroupRoot)
	m.caps, errs[2] = host.DetectCapabilities()
	m.oom, errs[3] = host.OOMScoreAdj()
	return m, errors.Join(errs[:]...)
}
