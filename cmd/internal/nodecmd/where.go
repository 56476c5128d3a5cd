package nodecmd

import (
	"fmt"
	"os"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

// Where are the settings that every command needs to find the node that it is about.
type Where struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`
	// Known are the settings structs of the binary: their keys may stand in the settings file.
	Known []any
	// AgentOnly is true in the binary that cannot be a server.
	AgentOnly bool
	// Server checks the settings in Known as a start of a server does, nil where AgentOnly.
	Server func() (ServerSettings, error)
}

// ServerSettings is what `umiak check` needs to know of a server.
type ServerSettings struct {
	Port           int
	FlannelBackend string
}

// Flags are the flags that find the node.
func (w *Where) Flags(more ...ucli.Flag) []ucli.Flag { return append(config.Flags(w), more...) }

// Dirs returns the directories of the node that a command is about: those that the command was given, those of the node that
// runs, or those that the settings of this machine name.
func (w *Where) Dirs(c *ucli.Context) (layout.Dirs, error) { return w.dirs(c, instance.Running) }

// StoppedDirs is Dirs for commands that take away what a stopped node has left. What happens to run has no say in it.
func (w *Where) StoppedDirs(c *ucli.Context) (layout.Dirs, error) {
	return w.dirs(c, func(layout.Dirs) bool { return false })
}

func (w *Where) dirs(c *ucli.Context, running func(layout.Dirs) bool) (layout.Dirs, error) {
	s, err := w.load(c)
	if err = config.Except(err, "data-dir", "run-dir"); err != nil {
		return layout.Dirs{}, BadConfig(err)
	}
	return w.find(s, running)
}

// load fills in the settings of w and of Known.
func (w *Where) load(c *ucli.Context) (config.Settings, error) {
	return config.LoadInstalled(c, append([]any{w}, w.Known...)...)
}

// find returns the directories of the node that a command is about, from settings that load has filled in.
func (w *Where) find(s config.Settings, running func(layout.Dirs) bool) (layout.Dirs, error) {
	exists := func(d layout.Dirs) bool { _, err := os.Stat(d.Data); return err == nil }
	f := finder{
		settings: layout.Dirs{Data: w.DataDir, Run: w.RunDir},
		source:   max(s.Source("data-dir"), s.Source("run-dir")), runSource: s.Source("run-dir"),
		nodes:   slices.DeleteFunc(instance.Registry(layout.Registry).List(), func(d layout.Dirs) bool { return !exists(d) }),
		running: running, exists: exists,
	}
	d, err := f.find()
	if err != nil {
		return d, usageError{err}
	}
	return d, nil
}

// finder decides which node a command is about.
type finder struct {
	settings  layout.Dirs   // what flags, variables and files say
	source    config.Source // of either, the stronger
	runSource config.Source
	nodes     []layout.Dirs // those that have run since boot in directories of their own
	running   func(layout.Dirs) bool
	exists    func(layout.Dirs) bool
}

func (f finder) find() (layout.Dirs, error) {
	if f.source >= config.FromEnvironment {
		for _, n := range f.nodes {
			if n.Data == f.settings.Data && f.runSource < config.FromEnvironment {
				return n, nil
			}
		}
		return f.settings, nil
	}
	if f.running(f.settings) {
		return f.settings, nil
	}
	running := slices.DeleteFunc(slices.Clone(f.nodes), func(d layout.Dirs) bool { return !f.running(d) })
	switch {
	case len(running) == 1:
		return running[0], nil
	case len(running) > 1:
		return layout.Dirs{}, fmt.Errorf("several nodes run on this machine, in %s: say which with --data-dir, or UMIAK_DATA_DIR", dataDirs(running))
	case f.source > config.FromDefault || f.exists(f.settings) || len(f.nodes) == 0:
		return f.settings, nil
	case len(f.nodes) > 1:
		return layout.Dirs{}, fmt.Errorf("several nodes have run on this machine, in %s: say which with --data-dir, or UMIAK_DATA_DIR", dataDirs(f.nodes))
	}
	return f.nodes[0], nil
}

func dataDirs(nodes []layout.Dirs) string {
	var out []string
	for _, d := range nodes {
		out = append(out, d.Data)
	}
	slices.Sort(out)
	return strings.Join(out, " and ")
}
