package nodecmd

import (
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/layout"
)

func TestWhichNodeACommandIsAbout(t *testing.T) {
	dirs := func(name string) layout.Dirs { return layout.Dirs{Data: "/" + name, Run: "/run/" + name} }
	a, b, set := dirs("a"), dirs("b"), dirs("set")
	type nodes = []layout.Dirs
	for name, c := range map[string]struct {
		f              finder
		running, exist nodes
		want           layout.Dirs
		err            string
	}{
		"nothing at all":                              {f: finder{settings: layout.Default}, want: layout.Default},
		"the only one that runs":                      {f: finder{settings: layout.Default, nodes: nodes{a, b}}, running: nodes{a}, exist: nodes{layout.Default}, want: a},
		"a flag, though another runs":                 {f: finder{settings: set, source: config.FromFlag, runSource: config.FromFlag, nodes: nodes{a}}, running: nodes{a}, want: set},
		"a flag for data-dir alone finds its run-dir": {f: finder{settings: layout.Dirs{Data: "/b", Run: "/run/umiak"}, source: config.FromFlag, nodes: nodes{a, b}}, want: b},
		"the service's settings":                      {f: finder{settings: set, source: config.FromService}, want: set},
		"the service runs, and so does another":       {f: finder{settings: set, source: config.FromFile, nodes: nodes{a, set}}, running: nodes{a, set}, want: set},
		"the file was edited since the start":         {f: finder{settings: set, source: config.FromFile, nodes: nodes{a}}, running: nodes{a}, want: a},
		"two run that no setting names":               {f: finder{settings: layout.Default, nodes: nodes{b, a}}, running: nodes{a, b}, err: "in /a and /b: say which with --data-dir"},
		"one has stopped":                             {f: finder{settings: layout.Default, nodes: nodes{a}}, want: a},
		"one has stopped, and the default is there":   {f: finder{settings: layout.Default, nodes: nodes{a}}, exist: nodes{layout.Default}, want: layout.Default},
		"one has stopped, and a file names another":   {f: finder{settings: set, source: config.FromFile, nodes: nodes{a}}, want: set},
		"two have stopped":                            {f: finder{settings: layout.Default, nodes: nodes{a, b}}, err: "several nodes have run"},
	} {
		c.f.running = func(d layout.Dirs) bool { return slices.Contains(c.running, d) }
		c.f.exists = func(d layout.Dirs) bool { return slices.Contains(c.exist, d) }
		got, err := c.f.find()
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
