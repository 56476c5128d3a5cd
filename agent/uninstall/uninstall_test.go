package uninstall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/datadisk"
	"github.com/umiak-io/umiak/internal/layout"
)

// installed is a machine on which install.sh was.
type installed struct {
	dir, etc string
	nodes    []layout.Dirs
	did      []string
	fail     string
}

func (m *installed) config(keep bool) Config {
	return Config{
		Etc: m.etc, Keep: keep, Out: &bytes.Buffer{}, SettingsRead: filepath.Join(m.dir, "settings-read"),
		Nodes: m.nodes,
		Cleanup: func(_ context.Context, d layout.Dirs, purge bool) error {
			if purge == keep {
				return fmt.Errorf("purge %v with keep %v", purge, keep)
			}
			return m.do("cleanup " + d.Data)
		},
		Command: func(_ context.Context, name string, args ...string) error {
			return m.do(name + " " + strings.Join(args, " "))
		},
	}
}

func (m *installed) do(what string) error {
	if m.fail != "" && strings.Contains(what, m.fail) {
		return errors.New("no")
	}
	m.did = append(m.did, what)
	return nil
}

func newInstalled(t *testing.T) *installed {
	m := &installed{dir: t.TempDir(), nodes: []layout.Dirs{{Data: "/no/a"}, {Data: "/no/b"}}}
	m.etc = filepath.Join(m.dir, "etc")
	for name, text := range map[string]string{
		"settings-read": "", "bin/umiak": "", "bin/other": "", "units/umiak.service": "", "etc/config.yaml": "",
		"etc/config.yaml.d/50-install.yaml": "",
		"etc/installed": filepath.Join(m.dir, "bin/umiak") + "\n" +
			filepath.Join(m.dir, "units/umiak.service") + "\n",
	} {
		name = filepath.Join(m.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755),
			os.WriteFile(name, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"bin/kubectl": "umiak", "bin/crictl": "umiak", "bin/ctr": "other"} {
		if err := os.Symlink(to, filepath.Join(m.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *installed) left(t *testing.T) string {
	t.Helper()
	var all []string
	if err := filepath.WalkDir(m.dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(p, m.dir+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func TestTakesAllBack(t *testing.T) {
	for name, c := range map[string]struct {
		keep bool
		left string
	}{"all": {false, "bin/ctr bin/other"}, "keep": {true, "bin/ctr bin/other etc/config.yaml etc/config.yaml.d/50-install.yaml"}} {
		t.Run(name, func(t *testing.T) {
			m := newInstalled(t)
			if err := Run(t.Context(), m.config(c.keep)); err != nil {
				t.Fatal(err)
			}
			if got := m.left(t); got != c.left {
				t.Errorf("left: %s", got)
			}
			if got := strings.Join(m.did,
				"; "); got != "systemctl --quiet disable --now umiak.service; cleanup /no/a; cleanup /no/b; systemctl daemon-reload" {
				t.Errorf("did %s", got)
			}
			if err := Run(t.Context(), m.config(c.keep)); !errors.Is(err, ErrNotInstalled) {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// TestPlan: what would be removed is named, and nothing is.
func TestPlan(t *testing.T) {
	m := newInstalled(t)
	before := m.left(t)
	programs := []string{filepath.Join(m.dir, "bin/umiak"), filepath.Join(m.dir, "units/umiak.service"),
		filepath.Join(m.dir, "bin/kubectl"), filepath.Join(m.dir, "bin/crictl")}
	for keep, want := range map[bool][]string{true: programs,
		false: append(slices.Clone(programs), m.etc, "/no/a", "/no/b")} {
		got, err := Plan(m.config(keep))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("keep %v: %q, %v", keep, got, err)
		}
	}
	if got := m.left(t); got != before {
		t.Errorf("left: %s", got)
	}
}

// TestNodesOf: nodes that earlier settings named are found by the notes about their disks.
func TestNodesOf(t *testing.T) {
	etc, other, here := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{other, here} {
		if err := errors.Join(os.WriteFile(filepath.Join(d, "mark"), nil, 0o600),
			datadisk.Save(etc, d, d+"-run")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := NodesOf(etc, layout.Dirs{Data: here + "/", Run: "/r"})
	want := []layout.Dirs{{Data: here + "/", Run: "/r"}, {Data: other, Run: other + "-run"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestGoesOnAfterAFailure(t *testing.T) {
	for _, step := range []string{"disable", "cleanup", "daemon-reload"} {
		m := newInstalled(t)
		m.fail = step
		if err := Run(t.Context(), m.config(false)); err == nil {
			t.Errorf("%s: no error", step)
		}
		m.fail = ""
		if err := Run(t.Context(), m.config(false)); err != nil {
			t.Errorf("%s: again: %v", step, err)
		}
		if got := m.left(t); got != "bin/ctr bin/other" {
			t.Errorf("%s: left %s", step, got)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add("/usr/local/bin/umiak\n/etc/systemd/system/umiak.service\n")
	f.Add("/etc/passwd")
	f.Add("/umiak/../etc/shadow\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parse(text)
		for _, p := range all {
			if base := filepath.Base(p); err == nil &&
				(!filepath.IsAbs(p) || !strings.HasPrefix(base, "umiak") || strings.Contains(p, "..")) {
				t.Errorf("%q", p)
			}
		}
	})
}
