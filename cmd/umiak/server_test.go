package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
)

// TestSecondServerChangesNothing: a server that is started by hand beside the service leaves the mark of
// cluster-reset-restore-path, without which the service would restore the snapshot again.
func TestSecondServerChangesNothing(t *testing.T) {
	dir := t.TempDir()
	d := layout.Dirs{Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run")}
	settings := filepath.Join(dir, "config.yaml")
	for file, text := range map[string]string{
		d.ResetRestored(): "/mnt/a", settings: "data-dir: " + d.Data + "\nrun-dir: " + d.Run + "\nnode-name: n\n",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"umiak", "server", "--config", settings}, &stdout, &stderr)
	if code == 0 || !strings.Contains(stderr.String(), "another umiak is using this data directory") {
		t.Errorf("%d\n%s%s", code, stdout.String(), stderr.String())
	}
	if raw, err := os.ReadFile(d.ResetRestored()); err != nil || string(raw) != "/mnt/a" {
		t.Errorf("the mark: %q, %v", raw, err)
	}
}
