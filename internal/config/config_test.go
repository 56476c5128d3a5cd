package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
)

type settings struct {
	DataDir string        `key:"data-dir" default:"/var/lib/umiak" usage:"where everything is kept"`
	TLSSAN  []string      `key:"tls-san" usage:"more names of the server"`
	Port    int           `key:"https-listen-port" default:"6443" usage:"port"`
	Off     bool          `key:"disable-agent" usage:"no agent"`
	Every   time.Duration `key:"every" default:"5m" usage:"how often"`
	Token   string        `key:"token" secret:"true" usage:"secret"`
}
type other struct {
	Common struct {
		DataDir string `key:"data-dir" default:"/var/lib/umiak" usage:"where everything is kept"`
	}
	Labels []string `key:"node-label" usage:"labels"`
}

// load runs a command line with settings files and returns the loaded settings.
func load(t *testing.T, files map[string]string, args ...string) (settings, other, error) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var s settings
	var o other
	var err error
	app := &cli.App{Flags: Flags(&s, &o), Action: func(c *cli.Context) error { _, err = Load(c, &s, &o); return nil }}
	argv := []string{"umiak"}
	if len(files) > 0 {
		argv = append(argv, "--config", filepath.Join(dir, "config.yaml"))
	}
	if e := app.Run(append(argv, args...)); e != nil {
		t.Fatal(e)
	}
	return s, o, err
}

func TestSourcesAndTheirOrder(t *testing.T) {
	t.Setenv("UMIAK_HTTPS_LISTEN_PORT", "7000")
	s, o, err := load(t, map[string]string{
		"config.yaml":              "data-dir: /one\ntls-san: a\nnode-label: [x=1]\nevery: 1m\nhttps-listen-port: 1\n",
		"config.yaml.d/20.yaml":    "node-label+: [z=3]\ndata-dir: /three\n",
		"config.yaml.d/10.yaml":    "# a comment\nnode-label+: y=2\ndata-dir: /two\n",
		"config.yaml.d/notes":      "not: yaml: at all",
		"config.yaml.d/empty.yaml": "# nothing\n",
	}, "--every", "9s", "--disable-agent")
	if err != nil {
		t.Fatal(err)
	}
	if s.DataDir != "/three" || o.Common.DataDir != "/three" {
		t.Errorf("data-dir %q, %q", s.DataDir, o.Common.DataDir)
	}
	if s.Port != 7000 || s.Every != 9*time.Second || !s.Off || !slices.Equal(s.TLSSAN, []string{"a"}) {
		t.Errorf("%+v", s)
	}
	if !slices.Equal(o.Labels, []string{"x=1", "y=2", "z=3"}) {
		t.Errorf("labels %v", o.Labels)
	}
}

func TestEveryMistakeIsNamedAtOnce(t *testing.T) {
	_, _, err := load(t, map[string]string{"config.yaml": strings.Join([]string{
		"data-dri: /x", "https-listen-port: many", "tls-san: {a: b}", "data-dir: [a, b]", "every+: 1s", "token:",
		"flannel: 1", "every: 1s", "every: 2s",
	}, "\n")}, "--every", "soon")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"config.yaml:1: data-dri: no such setting; did you mean data-dir?",
		`config.yaml:2: https-listen-port: "many" is not a whole number`,
		"config.yaml:3: tls-san: takes a value or a list, not a mapping",
		"config.yaml:4: data-dir: takes one value, not a list",
		"config.yaml:5: every+: only a list can be added to with +",
		"config.yaml:6: token: has no value",
		"config.yaml:7: flannel: no such setting; `--help` lists them",
		"config.yaml:9: every: stands at line 8 already",
		`--every: "soon" is not a duration such as 90s or 12h`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s\nin:\n%v", want, err)
		}
	}
}

func TestAFileThatWasAskedForMustExist(t *testing.T) {
	_, _, err := load(t, nil, "--config", "/does/not/exist.yaml")
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist.yaml") {
		t.Fatalf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "a: b", "tls-san: [a, b]", "tls-san+: &x a\ndata-dir: *x", "- a", "? [a]: b",
		"data-dir: |\n  x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var s settings
		for _, err := range parse("config.yaml", raw, collect([]any{&s})) {
			if !strings.HasPrefix(err.Error(), "config.yaml") {
				t.Fatalf("an error does not say where: %v", err)
			}
		}
	})
}
