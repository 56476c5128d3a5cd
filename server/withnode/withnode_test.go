package withnode

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/process"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }

// TestParts: server and node stand in one list that can be started; without a node none of its parts is there.
func TestParts(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for name, headless := range map[string]bool{"with a node": false, "without": true} {
		var cfg Config
		dir := t.TempDir()
		settings := "data-dir: " + filepath.Join(dir, "data") + "\nrun-dir: " + filepath.Join(dir, "run") +
			"\nnode-name: n1\nnode-ip: [10.0.0.5]\n"
		if err := config.Parse("settings", settings, &cfg.Server, &cfg.Agent); err != nil {
			t.Fatal(err)
		}
		cfg.Server.DisableAgent = headless
		release, err := instance.Acquire(cfg.Server.Dirs())
		if err != nil {
			t.Fatal(err)
		}
		prep := process.Prepare(t.Context(), cfg.Server.Dirs(), log)
		all, err := New(t.Context(), cfg, prep, log)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		parts := all.Parts()
		if _, err := lifecycle.New(log, parts...); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		node := slices.ContainsFunc(parts, func(p lifecycle.Part) bool { return p.Name == "kubelet" })
		if node == headless || len(all.Sources()) == 0 {
			t.Errorf("%s: a kubelet is in the list: %t; %d sections", name, node, len(all.Sources()))
		}
		if all.Forgive("kubelet", os.ErrClosed) {
			t.Errorf("%s: something was forgiven before a kubelet ran", name)
		}
		prep.End()
		release()
	}
}

func TestCheckFile(t *testing.T) {
	for settings, want := range map[string]string{
		"": "", "cluster-init: true\nnode-label: [a=b]\nlog-level: debug\n": "",
		"no-such-key: 1\n": "no-such-key", "node-label: [a=b=c]\n": "node-label", "log-level: loud\n": "log-level",
	} {
		file := filepath.Join(t.TempDir(), "server.yaml")
		if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckFile(file); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", settings, err)
		}
	}
}
