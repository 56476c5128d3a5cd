// Package nodefinder decides which node of this machine a command is about: several can run in directories of their
// own.
//
// It imports internal/config for the source of a setting and internal/instance for the nodes that have run since boot.
// cmd/internal/nodecmd calls it for every command.
package nodefinder

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

// Finder finds a node.
type Finder struct {
	Settings  layout.Dirs   // as flags, variables and files set them
	Source    config.Source // of either directory, the stronger one
	RunSource config.Source // of the run directory
	// Nodes are those that have run since boot in directories that are not the default ones.
	Nodes   []layout.Dirs
	Running func(layout.Dirs) bool
	Exists  func(layout.Dirs) bool
}

// New returns a Finder over this machine's nodes whose data exist. running reports whether a node is to count as one
// that runs.
func New(settings layout.Dirs, data, run config.Source, running func(layout.Dirs) bool) Finder {
	exists := func(d layout.Dirs) bool { _, err := os.Stat(d.Data); return err == nil }
	nodes := instance.Registry(layout.Registry).List()
	return Finder{
		Settings: settings, Source: max(data, run), RunSource: run, Running: running, Exists: exists,
		Nodes: slices.DeleteFunc(nodes, func(d layout.Dirs) bool { return !exists(d) }),
	}
}

// Find returns the directories that the command was given, those of the node that runs, or those of the settings, in
// this order. Where that leaves several nodes, the error names them.
func (f Finder) Find() (layout.Dirs, error) {
	if f.Source >= config.FromEnvironment {
		for _, n := range f.Nodes {
			if n.Data == f.Settings.Data && f.RunSource < config.FromEnvironment {
				return n, nil
			}
		}
		return f.Settings, nil
	}
	if f.Running(f.Settings) {
		return f.Settings, nil
	}
	running := slices.DeleteFunc(slices.Clone(f.Nodes), func(d layout.Dirs) bool { return !f.Running(d) })
	switch {
	case len(running) == 1:
		return running[0], nil
	case len(running) > 1:
		return layout.Dirs{}, ambiguous("run", running)
	case f.Source > config.FromDefault || f.Exists(f.Settings) || len(f.Nodes) == 0:
		return f.Settings, nil
	case len(f.Nodes) > 1:
		return layout.Dirs{}, ambiguous("have run", f.Nodes)
	}
	return f.Nodes[0], nil
}

func ambiguous(verb string, nodes []layout.Dirs) error {
	var dirs []string
	for _, d := range nodes {
		dirs = append(dirs, d.Data)
	}
	slices.Sort(dirs)
	return fmt.Errorf("several nodes %s on this machine, in %s: say which with --data-dir, or UMIAK_DATA_DIR", verb,
		strings.Join(dirs, " and "))
}
