package nodecmd

import (
	"fmt"
	"slices"

	ucli "github.com/urfave/cli/v2"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/check"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodefinder"
)

// Where holds the settings by which a command finds the node that it is about.
type Where struct {
	DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything that survives a reboot is kept"`
	RunDir  string `key:"run-dir" default:"/run/umiak" usage:"sockets and other state of this boot"`
	// Known are the settings structs of the binary: their keys may stand in the settings file.
	Known []any
	// Foreign are names of k3s' settings, which may stand there too.
	Foreign config.Foreign
	// Server checks the settings of a server; nil in the program that cannot be one.
	Server func() (check.Server, error)
}

// Flags are the flags that find the node.
func (w *Where) Flags(more ...ucli.Flag) []ucli.Flag { return append(config.Flags(w), more...) }

// Dirs returns the directories of the node that a command is about, see internal/nodefinder.
func (w *Where) Dirs(c *ucli.Context) (layout.Dirs, error) { return w.dirs(c, instance.Running) }

// StoppedDirs is Dirs for commands that remove what a stopped node has left: other nodes that run do not count.
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

// Containerd returns the socket of Umiak's containerd on the node that a command is about. It fails where the settings
// name another container runtime, whose images and containers its own tools show.
func (w *Where) Containerd(c *ucli.Context) (string, error) {
	socket, other, err := w.Runtime(c)
	if err == nil && other {
		err = fmt.Errorf("the containers of this node are run by %s (container-runtime-endpoint), not by Umiak's "+
			"containerd: use the tools of that runtime, or %s crictl", socket, c.App.Name)
	}
	return socket, err
}

// Runtime returns the socket of the container runtime of the node that a command is about. other reports that the
// settings name one that is not Umiak's containerd.
func (w *Where) Runtime(c *ucli.Context) (socket string, other bool, err error) {
	dirs, err := w.Dirs(c)
	if err != nil {
		return "", false, err
	}
	for _, known := range w.Known {
		if cfg, ok := known.(*agent.Config); ok {
			if socket, other = cfg.RuntimeSocket(); other {
				return socket, true, nil
			}
		}
	}
	return dirs.ContainerdSocket(), false, nil
}

// load fills in the settings of w and of Known.
func (w *Where) load(c *ucli.Context) (config.Settings, error) {
	return config.LoadInstalled(c, slices.Concat([]any{w}, w.Known, []any{w.Foreign})...)
}

// find returns the directories of the node that a command is about, from settings that load has filled in.
func (w *Where) find(s config.Settings, running func(layout.Dirs) bool) (layout.Dirs, error) {
	settings := layout.Dirs{Data: w.DataDir, Run: w.RunDir}
	d, err := nodefinder.New(settings, s.Source("data-dir"), s.Source("run-dir"), running).Find()
	if err != nil {
		return d, usageError{err}
	}
	return d, nil
}
