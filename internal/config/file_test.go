package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

type lists struct {
	Disable []string `key:"disable" usage:"names"`
	CIDR    []string `key:"cluster-cidr" default:"10.42.0.0/16" usage:"ranges"`
	Kubelet []string `key:"kubelet-arg" usage:"flags"`
	Name    string   `key:"node-name" usage:"name"`
	Off     bool     `key:"disable-agent" usage:"no agent"`
}

// read runs a command line of a program with a subcommand and a settings file.
func read(t *testing.T, file string, args ...string) (l lists, s Settings, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	app := &cli.App{Commands: []*cli.Command{{Name: "run", Flags: Flags(&l), Action: func(c *cli.Context) error {
		s, err = LoadInstalled(c, &l)
		return nil
	}}}}
	if e := app.Run(append([]string{"umiak", "run", "--config", path}, args...)); e != nil {
		t.Fatal(e)
	}
	return l, s, err
}

func TestListsSplitAtCommasInEverySourceAndComponentFlagsInNone(t *testing.T) {
	want := []string{"traefik", "servicelb", "local-storage"}
	const hard = "eviction-hard=memory.available<100Mi,nodefs.available<10%"
	for name, got := range map[string]func() (lists, Settings, error){
		"yaml": func() (lists, Settings, error) {
			return read(t,
				"disable: traefik,servicelb, local-storage\nkubelet-arg:\n- "+hard+"\n- feature-gates=A=true,B=false\n")
		},
		"yaml list": func() (lists, Settings, error) {
			return read(t,
				"disable: ['traefik,servicelb', local-storage]\nkubelet-arg: ["+`"`+hard+
					`", "feature-gates=A=true,B=false"]`)
		},
		"flags": func() (lists, Settings, error) {
			return read(t, "", "--disable", "traefik,servicelb", "--disable=local-storage", "--kubelet-arg", hard,
				"--kubelet-arg", "feature-gates=A=true,B=false")
		},
		"variables": func() (lists, Settings, error) {
			t.Setenv("UMIAK_DISABLE", "traefik,servicelb,local-storage")
			t.Setenv("UMIAK_KUBELET_ARG", hard+"\nfeature-gates=A=true,B=false")
			return read(t, "disable: other\n")
		},
	} {
		l, _, err := got()
		if err != nil || !slices.Equal(l.Disable, want) {
			t.Errorf("%s: disable %q, %v", name, l.Disable, err)
		}
		if !slices.Equal(l.Kubelet, []string{hard, "feature-gates=A=true,B=false"}) {
			t.Errorf("%s: kubelet-arg %q", name, l.Kubelet)
		}
	}
	if l, _, err := read(t, "cluster-cidr: 10.44.0.0/16,fd00::/56\n"); err != nil || len(l.CIDR) != 2 {
		t.Errorf("cluster-cidr %q, %v", l.CIDR, err)
	}
}

func TestTheServicesEnvironmentCountsForCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	for name, text := range map[string]string{
		"config.yaml": "node-name: file\ndisable: file\n",
		"umiak.env":   "# made by install.sh\nUMIAK_NODE_NAME='it is here'\nHTTP_PROXY=http://x\nUMIAK_DISABLE=\"a,b\"\nUMIAK_DISABLE_AGENT=true\nnonsense\n# export X=y\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var l lists
	var s Settings
	var err error
	app := &cli.App{Flags: Flags(&l), Action: func(c *cli.Context) error { s, err = LoadInstalled(c, &l); return nil }}
	if e := app.Run([]string{"umiak", "-c", file}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if l.Name != "it is here" || !slices.Equal(l.Disable, []string{"a", "b"}) || !l.Off ||
		s.Source("node-name") != FromService || s.Source("cluster-cidr") != FromDefault {
		t.Errorf("%+v %+v", l, s)
	}
	t.Setenv("UMIAK_NODE_NAME", "variable")
	if e := app.Run([]string{"umiak", "-c", file, "--disable", "flag"}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if l.Name != "variable" || s.Source("node-name") != FromEnvironment || !slices.Equal(l.Disable, []string{"flag"}) ||
		s.Source("disable") != FromFlag {
		t.Errorf("%+v %+v", l, s)
	}
	// The process of the service gets its environment from the init system.
	app.Action = func(c *cli.Context) error { _, err = Load(c, &l); return nil }
	t.Setenv("UMIAK_NODE_NAME", "")
	if e := app.Run([]string{"umiak", "-c", file}); e != nil || err != nil || l.Name != "file" {
		t.Error(e, err, l.Name)
	}
}

func TestExportInTheServicesEnvironmentIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "umiak.env"), []byte("A=b\nexport UMIAK_DISABLE=x\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, "umiak.env") + ":2: systemd ignores a line with `export`; write NAME=VALUE alone"
	if _, err := ServiceEnvironment(dir); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestCommandsWithoutFlagsReadAllSources covers `umiak kubectl` and `umiak ctr`, which have no flags of umiak.
func TestCommandsWithoutFlagsReadAllSources(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte("node-name: file\ndisable: file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("UMIAK_CONFIG", file)
	t.Setenv("UMIAK_DISABLE", "variable")
	var l lists
	var err error
	app := &cli.App{Commands: []*cli.Command{{Name: "kubectl", SkipFlagParsing: true,
		Action: func(c *cli.Context) error { _, err = Load(c, &l); return nil }}}}
	if e := app.Run([]string{"umiak", "kubectl", "--node-name", "x"}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	if l.Name != "file" || !slices.Equal(l.Disable, []string{"variable"}) {
		t.Errorf("%+v", l)
	}
}

func TestFilesThatAreNotSettings(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"two documents": {"node-name: a\n---\ndisable: b\n", "config.yaml:3: a second document begins here"},
		"late document": {"---\n# nothing\n---\nnode-name: a\n---\ndisable: b\n",
			"config.yaml:6: a second document"},
		"duplicate": {"node-name: a\ndisable: b\nnode-name: c\n",
			"config.yaml:3: node-name: stands at line 1 already"},
		"tab":              {"disable:\n\t- a\n", "config.yaml:2: a tab begins this line"},
		"tab in a list":    {"node-name: x\ndisable:\n  - a\n\t- b\n", "config.yaml:4: a tab begins this line"},
		"UTF-16":           {"\xff\xfen\x00o\x00", "config.yaml:1: this is not text in UTF-8"},
		"Latin-1":          {"# a comment\nnode-name: M\xfcnchen\n", "config.yaml:2: this is not text in UTF-8"},
		"NUL":              {"node-name: a\n\x00\x00", "config.yaml:2: this is not text in UTF-8"},
		"a list":           {"- node-name: a\n", "config.yaml:1: settings are lines of `key: value`"},
		"a word":           {"node-name\n", "config.yaml:1: settings are lines of `key: value`"},
		"equals":           {"node-name=a\n", "config.yaml:1: settings are lines of `key: value`"},
		"unfinished quote": {"node-name: 'a\ndisable: b\n", "config.yaml:"},
		"a mapping":        {"node-label: {a: b}\n", "config.yaml:1: node-label: no such setting"},
		"no value": {"node-name: true\n",
			"config.yaml:1: node-name: needs a value; if the text true is meant, put it in quotes"},
		"no value, list": {"disable: [a, true]\n", "config.yaml:1: disable: needs a value"},
		"a complex key":  {"? [a, b]\n: c\n", "config.yaml:1: "},
	} {
		_, _, err := read(t, c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", name, c.want, err)
		} else if strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), "yaml:") != 1 {
			t.Errorf("%s: not one clear line: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "blank": "\n\n", "comments": "# a\n# b\n", "mark": "---\n", "end": "node-name: a\n...\n",
		"empty second": "node-name: a\n---\n# nothing\n", "BOM": "\ufeffnode-name: a\n",
		"CRLF": "node-name: a\r\ndisable: [b]\r\n",
	} {
		l, _, err := read(t, text)
		if err != nil || strings.Contains(text, "node-name") && l.Name != "a" {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
}

func TestNearest(t *testing.T) {
	for in, want := range map[string]string{"nod-name": "node-name", "node-names": "node-name", "statsu": "status",
		"x": "", "help-me-please": ""} {
		if got := Nearest(in, []string{"node-name", "node-label", "status", "token"}); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}
}
