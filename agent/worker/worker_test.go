package worker

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run, syscall.CLONE_NEWNS)) }

func TestTargetOf(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  agent.Config
		errs []string // all of them
	}{
		"a server alone": {agent.Config{Server: "https://10.0.0.1:6443"}, nil},
		"nothing":        {agent.Config{}, []string{"server: not set; it is the URL of a server to join"}},
		"not a URL": {agent.Config{Server: "10.0.0.1:6443/x", Token: "K10x::y:z"},
			[]string{"server: ", "token: this is not a token"}},
		"an empty file": {agent.Config{Server: "https://10.0.0.1", TokenFile: empty},
			[]string{"token-file: " + empty + " is empty"}},
		"no such file":    {agent.Config{Server: "https://10.0.0.1", TokenFile: empty + "x"}, []string{"token-file: "}},
		"no server, file": {agent.Config{TokenFile: empty}, []string{"server: not set", "token-file: "}},
	} {
		got, err := TargetOf(c.cfg)
		if len(c.errs) == 0 {
			if err != nil || got.Server != "10.0.0.1:6443" {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if err == nil || strings.Count(err.Error(), "\n") != len(c.errs)-1 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.errs {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: want %q, got %v", name, want, err)
			}
		}
	}
	if err := CheckTarget(agent.Config{}); err != nil {
		t.Error(err)
	}
	if err := CheckTarget(agent.Config{Token: "K10x::y:z"}); err == nil {
		t.Error("a token without a server is not refused")
	}
}

// TestParts: membership and the balancer stand in one list with the node, in an order in which it can start.
func TestParts(t *testing.T) {
	cfg := agent.Config{
		DataDir: t.TempDir(), RunDir: t.TempDir(), NodeName: "n1",
		NodeIP:       nodeip.At(netip.MustParseAddr("10.0.0.5")),
		BalancerPort: 6444,
	}
	w, err := New(cfg, Target{Server: "10.0.0.1:6443"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	parts := w.Parts()
	if _, err := lifecycle.New(slog.New(slog.DiscardHandler), parts...); err != nil {
		t.Error(err)
	}
	if first, last := parts[0].Name, parts[len(parts)-1].Name; first != "servers" || last != "membership" {
		t.Errorf("%s … %s", first, last)
	}
	for i, want := range []string{"Cluster", "Servers", "Node"} {
		if got := w.Sources()[i](t.Context()).Name; got != want {
			t.Errorf("section %d is %s", i, got)
		}
	}
}
