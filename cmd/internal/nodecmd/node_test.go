package nodecmd

import (
	"testing"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/check"
	"github.com/umiak-io/umiak/internal/logging"
)

// TestChecked: `umiak check` checks the settings that the command line and the files have filled in, whatever their
// order.
func TestChecked(t *testing.T) {
	a, l := &agent.Config{NodeName: "n1"}, &logging.Config{Level: "warn"}
	for _, known := range [][]any{{a, l}, {new(int), l, a}} {
		w := Where{Known: known, Server: func() (check.Server, error) { return check.Server{Port: 6443}, nil }}
		a.NodeName = "n2" // read by the command after Where was made
		if got := w.checked(true); got.Agent.NodeName != "n2" || got.Logging.Level != "warn" || !got.AgentOnly ||
			got.Server == nil {
			t.Errorf("%+v", got)
		}
	}
}
