package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// remarks loads the settings in a folder and returns the remarks.
func remarks(t *testing.T, dir string) (out []string, err error) {
	t.Helper()
	var l lists
	app := &cli.App{Flags: Flags(&l), Action: func(c *cli.Context) error {
		var s Settings
		s, err = LoadInstalled(c, &l)
		out = s.Remarks
		return nil
	}}
	if e := app.Run([]string{"umiak", "-c", filepath.Join(dir, "config.yaml")}); e != nil {
		t.Fatal(e)
	}
	return slices.DeleteFunc(out, func(s string) bool {
		return !strings.Contains(s, dir) && !strings.Contains(s, "TEST_ODD") && !strings.Contains(s, "NOD_NAME")
	}), err
}

func TestWhatLooksLikeASettingAndIsNoneIsNamed(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"config.yaml": "", "umiak.env": "UMIAK_DISABEL=x\nUMIAK_DISABLE=x\nOTHER=x\n",
		"config.yaml.d/50.YAML": "nonsense", "config.yaml.d/60.conf": "", "config.yaml.d/70.yaml": "disable: a",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("UMIAK_NOD_NAME", "x")
	t.Setenv("UMIAK_NODE_NAME", "x")
	t.Setenv("UMIAK_TEST_ODD_THING", "x")
	got, err := remarks(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		dir + "/config.yaml.d/50.YAML is not read: the names of files of settings end in .yaml or .yml",
		dir + "/config.yaml.d/60.conf is not read: the names of files of settings end in .yaml or .yml",
		"UMIAK_NOD_NAME in the environment does nothing: there is no such setting; did you mean UMIAK_NODE_NAME?",
		"UMIAK_TEST_ODD_THING in the environment does nothing: there is no such setting",
		"UMIAK_DISABEL in " + dir + "/umiak.env does nothing: there is no such setting; did you mean UMIAK_DISABLE?",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestWhatEditorsLeaveAmongDropInsIsNotReadAndAPipeIsRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, "config.yaml.d", name) }
	if err := os.Mkdir(filepath.Join(dir, "config.yaml.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("me@machine.1234:5678", at(".#50-more.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("._50-more.yaml"), []byte{0, 5, 22, 7}, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := remarks(t, dir); err != nil || len(got) > 0 {
		t.Error(got, err)
	}
	if err := unix.Mkfifo(at("60.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := remarks(t, dir); err == nil || !strings.Contains(err.Error(), at("60.yaml")+" is not a regular file") {
		t.Error(err)
	}
}
