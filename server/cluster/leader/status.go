package leader

import (
	"maps"
	"slices"

	"github.com/umiak-io/umiak/internal/status"
)

// Rows returns what status shows about the election.
func (e *Election) Rows() []status.Row {
	elected := e.Leader()
	row := status.Row{Name: "controllers and scheduler", State: "elsewhere", Detail: "on server " + elected}
	switch elected {
	case e.identity:
		row.State, row.Detail = "here", ""
	case "":
		row.State = "nowhere"
		row.Detail = "no server is known to run them: the lease " + Lease + " has no holder or cannot be read"
	}
	out := []status.Row{row}
	failing := e.Failing()
	for _, name := range slices.Sorted(maps.Keys(failing)) {
		out = append(out, status.Row{Name: name, State: "failing", Detail: failing[name] + "; it is tried again"})
	}
	return out
}
