package nodefinder

import (
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
)

func TestFind(t *testing.T) {
	dirs := func(name string) layout.Dirs { return layout.Dirs{Data: "/" + name, Run: "/run/" + name} }
	a, b, set := dirs("a"), dirs("b"), dirs("set")
	type nodes = []layout.Dirs
	for name, c := range map[string]struct {
		f              Finder
		running, exist nodes
		want           layout.Dirs
		err            string
	}{
		"nothing at all": {f: Finder{Settings: layout.Default}, want: layout.Default},
		"the only one that runs": {f: Finder{Settings: layout.Default, Nodes: nodes{a, b}},
			running: nodes{a}, exist: nodes{layout.Default}, want: a},
		"a flag, though another runs": {f: Finder{Settings: set, Source: config.FromFlag,
			RunSource: config.FromFlag, Nodes: nodes{a}}, running: nodes{a}, want: set},
		"a flag for data-dir alone finds its run-dir": {f: Finder{Settings: layout.Dirs{Data: "/b", Run: "/run/umiak"},
			Source: config.FromFlag, Nodes: nodes{a, b}}, want: b},
		"the service's settings": {f: Finder{Settings: set, Source: config.FromService}, want: set},
		"the service runs, and so does another": {f: Finder{Settings: set, Source: config.FromFile,
			Nodes: nodes{a, set}}, running: nodes{a, set}, want: set},
		"the file was edited since the start": {f: Finder{Settings: set, Source: config.FromFile,
			Nodes: nodes{a}}, running: nodes{a}, want: a},
		"two run that no setting names": {f: Finder{Settings: layout.Default, Nodes: nodes{b, a}},
			running: nodes{a, b}, err: "in /a and /b: say which with --data-dir"},
		"one has stopped": {f: Finder{Settings: layout.Default, Nodes: nodes{a}}, want: a},
		"one has stopped, and the default is there": {f: Finder{Settings: layout.Default, Nodes: nodes{a}},
			exist: nodes{layout.Default}, want: layout.Default},
		"one has stopped, and a file names another": {f: Finder{Settings: set, Source: config.FromFile,
			Nodes: nodes{a}}, want: set},
		"two have stopped": {f: Finder{Settings: layout.Default, Nodes: nodes{a, b}}, err: "several nodes have run"},
	} {
		c.f.Running = func(d layout.Dirs) bool { return slices.Contains(c.running, d) }
		c.f.Exists = func(d layout.Dirs) bool { return slices.Contains(c.exist, d) }
		got, err := c.f.Find()
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
