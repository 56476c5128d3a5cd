package check

import (
	"context"

	"github.com/umiak-io/umiak/internal/nodename"
)

// nodeName returns the node's current or future name.
func nodeName(_ context.Context, cfg Config) []Result {
	n, err := nodename.Finder{Dirs: cfg.Dirs, Set: cfg.NodeName, WithID: cfg.WithNodeID}.Find()
	switch {
	case err != nil:
		return []Result{missing("node name", "set node-name", "%v", err)}
	case n.Remark != "":
		return []Result{warn("node name", "set node-name, or give the machine a host name of its own", "%s", n.Remark)}
	}
	return []Result{ok("node name", "%s", n.Name)}
}
