package upgrade

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/umiak-io/umiak/internal/filelock"
)

// archive is a tar of empty files.
func archive(t *testing.T, names ...string) []byte {
	all := fstest.MapFS{}
	for _, n := range names {
		all[n] = &fstest.MapFile{}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(all), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRunsTheInstaller(t *testing.T) {
	t.Setenv("UMIAK_NODE_NAME", "never")
	etc, temp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	var out bytes.Buffer
	cfg := Config{Etc: etc, Version: "v2", Lock: filepath.Join(etc, "lock"), Out: &out}
	if err := Run(t.Context(), cfg); !errors.Is(err, ErrNotInstalled) {
		t.Fatal(err)
	}
	script := "echo \"$INSTALL_UMIAK_VERSION|$UMIAK_NODE_NAME|$*|$(ls $INSTALL_UMIAK_SOURCE | tr '\\n' ' ')\"; [ \"$INSTALL_UMIAK_VERSION\" != bad ]"
	if err := os.WriteFile(filepath.Join(etc, Script), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(temp, "release.tar")
	raw := archive(t, "umiak-v2/SHA256SUMS", "umiak-v2/x", "umiak-v2/images/app.tar")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if release, err := filelock.Try(cfg.Lock); err != nil {
		t.Error(err)
	} else {
		if err := Run(t.Context(), cfg); !errors.Is(err, filelock.ErrHeld) {
			t.Errorf("beside another one: %v", err)
		}
		release()
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
		err    string
	}{
		"version":            {func(*Config) {}, "v2|||", ""},
		"not run since boot": {func(c *Config) { c.Lock = filepath.Join(etc, "run", "umiak", "lock") }, "v2|||", ""},
		"dry run":            {func(c *Config) { c.DryRun = true }, "v2||--dry-run|", ""},
		"archive":            {func(c *Config) { c.Version, c.From = "", file }, "|||SHA256SUMS images x ", ""},
		"fails":              {func(c *Config) { c.Version = "bad" }, "bad|||", "not upgraded"},
		"both":               {func(c *Config) { c.From = file }, "", "either"},
		"neither":            {func(c *Config) { c.Version = "" }, "", "either"},
		"nothing":            {func(c *Config) { c.Version, c.From = "", file+".no" }, "", "no such file"},
		"no tar": {func(c *Config) { c.Version, c.From = "", filepath.Join(etc, Script) }, "",
			"read archive"},
	} {
		t.Run(name, func(t *testing.T) {
			out.Reset()
			cfg := cfg
			c.change(&cfg)
			err := Run(t.Context(), cfg)
			if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %v", err)
			}
			if !strings.HasPrefix(out.String(), c.want) {
				t.Errorf("said %q, want %q", out.String(), c.want)
			}
		})
	}
	if left, _ := os.ReadDir(temp); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// onText calls do once a text has been written to it.
type onText struct {
	text string
	do   func()
	all  bytes.Buffer
}

func (o *onText) Write(p []byte) (int, error) {
	n, err := o.all.Write(p)
	if o.do != nil && strings.Contains(o.all.String(), o.text) {
		o.do()
		o.do = nil
	}
	return n, err
}

// TestInterrupted: install.sh gets a signal and undoes its changes before Run returns. Where it was done, so is
// Run.
func TestInterrupted(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   error
	}{
		"undone": {`trap 'echo undone; exit 143' TERM; echo started; while :; do sleep 0.05; done`, context.Canceled},
		"done":   {`trap 'echo undone; exit 0' TERM; echo started; while :; do sleep 0.05; done`, nil},
	} {
		etc := t.TempDir()
		if err := os.WriteFile(filepath.Join(etc, Script), []byte(c.script), 0o700); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		out := &onText{text: "started", do: cancel}
		cfg := Config{Etc: etc, Version: "v2", Lock: filepath.Join(etc, "lock"), Out: out}
		if err := Run(ctx, cfg); !errors.Is(err, c.want) || !strings.HasSuffix(out.all.String(), "undone\n") {
			t.Errorf("%s: %v, output %q", name, err, out.all.String())
		}
		if filelock.Held(cfg.Lock) {
			t.Errorf("%s: the lock is held", name)
		}
		cancel()
	}
}

func TestConfirm(t *testing.T) {
	etc := t.TempDir()
	if err := os.WriteFile(filepath.Join(etc, unfinished), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // there, and not there
		if err := Confirm(etc); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(etc); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
