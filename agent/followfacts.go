package agent

import (
	"context"
	"errors"
	"reflect"

	"github.com/umiak-io/umiak/internal/lifecycle"
)

// settingsPart is the part that follows the servers' settings.
const settingsPart = "settings"

var errSettings = errors.New("the cluster's settings for nodes have changed; their parts read them when they start")

// followFacts ends the process, which executes itself again, when the cluster is no longer as the parts of the node
// know it. A node that has joined before starts with what it knew, and hears from a server soon after. Where servers
// disagree, the pause before a part starts again bounds how often this happens.
func (a *Agent) followFacts(ctx context.Context, ready func()) error {
	follower, _ := a.joiner.(Facts)
	used := readOnce(a.stage.Node().facts.Cluster)
	ready()
	for {
		now, changed := follower.Facts()
		if !reflect.DeepEqual(readOnce(now), used) {
			return &lifecycle.ReexecError{Part: settingsPart, Err: errSettings}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// readOnce returns the facts without those that the parts follow while they run.
func readOnce(c Cluster) Cluster {
	c.ExternalIPs, c.APIServer = nil, ""
	return c
}
