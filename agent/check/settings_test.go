package check

import (
	"errors"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/logging"
)

// TestSettings: what a server, a server's program on an agent, and an agent's program check, and all mistakes at once.
func TestSettings(t *testing.T) {
	dirs := layout.Dirs{Data: "/var/lib/n", Run: "/run/n"}
	good := agent.Config{
		BalancerPort: 6444, NodeName: "n1", Snapshotter: "overlayfs", CgroupRoot: "/", KubeletPort: 10250,
		Token: "K10x::y:z",
	}
	logs := logging.Config{Level: "info", Format: "text"}
	server := func() (Server, error) {
		return Server{Port: 6443, FlannelBackend: "none"}, errors.New("https-listen-port: wrong")
	}
	for name, c := range map[string]struct {
		settings Settings
		want     Config
		errs     []string // all of them, in this order
	}{
		"a server": {Settings{Server: server}, Config{ServerPort: 6443, Backend: "none"},
			[]string{"https-listen-port"}},
		"only its agent": {Settings{Server: server, AgentOnly: true}, Config{BalancerPort: 6444, Backend: "none"},
			[]string{"server: not set", "token: this is not"}},
		"an agent": {Settings{}, Config{BalancerPort: 6444}, []string{"server: not set", "token: this is not"}},
		"all that is wrong": {Settings{Server: server, Agent: agent.Config{CgroupRoot: "pods"}},
			Config{ServerPort: 6443, Backend: "none"}, []string{"cgroup-root", "https-listen-port"}},
	} {
		root := c.settings.Agent.CgroupRoot
		c.settings.Agent, c.settings.Logging = good, logs
		if root != "" {
			c.settings.Agent.CgroupRoot = root
		}
		got, err := c.settings.Config(dirs)
		if got.ServerPort != c.want.ServerPort || got.BalancerPort != c.want.BalancerPort ||
			got.Backend != c.want.Backend || got.Dirs != dirs || got.NodePort != 10250 {
			t.Errorf("%s: %+v", name, got)
		}
		rest := ""
		if err != nil {
			rest = err.Error()
		}
		for _, want := range c.errs {
			_, after, ok := strings.Cut(rest, want)
			if !ok {
				t.Errorf("%s: want %q in this order, got %v", name, want, err)
			}
			rest = after
		}
	}
}
