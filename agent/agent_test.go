package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/network/hostport"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/status"
)

// joiner is a Joiner on another machine than the server, without a server.
type joiner struct{ backend string }

func (joiner) Join(ctx context.Context, _ Node) (*Cluster, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}
func (joiner) Servers() ([]string, <-chan struct{}) { return []string{"10.0.0.1:6443"}, nil }
func (joiner) Authorities(context.Context, string) (string, time.Time, error) {
	return "", time.Time{}, nil
}
func (joiner) Facts() (Cluster, <-chan struct{})                       { return cluster(), nil }
func (j joiner) FlannelBackend() string                                { return j.backend }
func (joiner) SetTaints(context.Context, string, []corev1.Taint) error { return nil }

var (
	_ Servers = joiner{}
	_ Facts   = joiner{}
	_ Backend = joiner{}
	_ Taints  = joiner{}
)

func cluster() Cluster {
	return Cluster{
		APIServer: "https://127.0.0.1:6444", ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"),
			netip.MustParsePrefix("fd42::/48")},
		ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd43::/112")},
		ClusterDNS:  []netip.Addr{netip.MustParseAddr("10.43.0.10")}, ClusterDomain: "cluster.local",
		FlannelBackend: "vxlan", NodePorts: "30000-32767",
	}
}

func newAgent(t *testing.T, change func(*Config)) *Agent {
	t.Helper()
	cfg := Config{
		DataDir: t.TempDir(), RunDir: t.TempDir(), BalancerPort: 6444, NodeName: "n1", Snapshotter: "overlayfs",
		CgroupRoot: "/", KubeletPort: 10250, ImageSharing: true,
	}
	cfg.NodeIP = nodeip.At(netip.MustParseAddr("10.0.0.5"))
	if change != nil {
		change(&cfg)
	}
	a, err := New(cfg, joiner{backend: "vxlan"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// member makes a's node, as the parts "machine" and "join" do.
func member(t *testing.T, a *Agent) *node {
	t.Helper()
	m, err := host.Examine(a.dirs.NodeState(), "/")
	if err != nil {
		t.Fatal(err)
	}
	a.stage.SetMachine(m)
	const kubeconfig = `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c"}}],
		"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}]}`
	for _, file := range []string{a.dirs.KubeletKubeconfig(), a.dirs.AgentKubeconfig()} {
		if err := os.MkdirAll(a.dirs.Agent(), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := factsOf(cluster(), []netip.Addr{netip.MustParseAddr("10.0.0.5")})
	if err != nil {
		t.Fatal(err)
	}
	n, err := a.newNode(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestParts: the list is in an order in which it can start, and its names are those that docs and `umiak status` show.
func TestParts(t *testing.T) {
	const all = "addresses machine registries containerd images join events tunnel network routes proxy policy resolver dns tables kubelet labels upgrade settings"
	for sharing, want := range map[bool]string{false: all, true: all + " sharing"} {
		a := newAgent(t, func(c *Config) { c.ImageSharing = sharing })
		parts := append([]lifecycle.Part{{Name: "servers"}}, a.Parts("servers")...)
		if _, err := lifecycle.New(slog.New(slog.DiscardHandler), parts...); err != nil {
			t.Error(err)
		}
		var names []string
		for _, p := range parts[1:] {
			names = append(names, p.Name)
			if p.Restart == nil {
				t.Errorf("%s ends the process when it fails", p.Name)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("image-sharing %v: %s", sharing, got)
		}
	}
}

// TestSections: `umiak status` has the same sections in the same order before and after the node has joined, and can be
// read while it joins.
func TestSections(t *testing.T) {
	a := newAgent(t, nil)
	report := func() (names, empty []string) {
		for _, s := range a.Sources() {
			section := s(t.Context())
			if names = append(names, section.Name); section.Rows == nil {
				empty = append(empty, section.Name)
			}
		}
		return names, empty
	}
	want := []string{"Node", "Registries", "Image archives", "Image sharing", "Tunnels to servers", "Services",
		"Network policies", "DNS"}
	names, empty := report()
	if !slices.Equal(names, want) || !slices.Equal(empty,
		[]string{"Registries", "Image archives", "Tunnels to servers", "Services", "Network policies", "DNS"}) {
		t.Errorf("before: %q, empty %q", names, empty)
	}
	if text, err := json.Marshal(a.Sources()[5](t.Context())); err != nil ||
		string(text) != `{"name":"Services","rows":null}` {
		t.Errorf("%s, %v", text, err)
	}
	var reading sync.WaitGroup
	done := make(chan struct{})
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				report()
			}
		}
	})
	reading.Go(a.VolumeControllersMade)
	a.stage.SetNode(member(t, a))
	close(done)
	reading.Wait()
	if names, empty = report(); !slices.Equal(names, want) || slices.Contains(empty, "Services") {
		t.Errorf("after: %q, empty %q", names, empty)
	}
	if got := a.Sources()[5](t.Context()).Rows; !reflect.DeepEqual(got,
		[]status.Row{{Name: "rules", State: "starting", Detail: "0 ports of Services, 0 endpoints, 0 repairs"}}) {
		t.Errorf("%+v", got)
	}
}

// TestSharingOff: the section names the setting.
func TestSharingOff(t *testing.T) {
	a := newAgent(t, func(c *Config) { c.ImageSharing = false })
	got := a.Sources()[3](t.Context())
	if want := (status.Section{Name: "Image sharing",
		Rows: []status.Row{{Name: "neighbours", State: "off",
			Detail: "image-sharing: false"}}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// TestFlannelBackend: containerd starts with what was known before the node joined, and waits for the cluster
// otherwise.
func TestFlannelBackend(t *testing.T) {
	a := newAgent(t, nil)
	if got, err := a.flannelBackend(t.Context()); err != nil || got != "vxlan" {
		t.Errorf("%q, %v", got, err)
	}
	a.backend = ""
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := a.flannelBackend(ctx); err == nil {
		t.Errorf("without a cluster: %q", got)
	}
	got := make(chan string)
	go func() {
		b, err := a.flannelBackend(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	a.stage.SetNode(&node{facts: clusterFacts{Cluster: Cluster{FlannelBackend: "none"}}})
	if b := <-got; b != "none" {
		t.Errorf("%q", b)
	}
}

// TestBackendChanged: pods have no network where containerd looks for another one.
func TestBackendChanged(t *testing.T) {
	for was, is := range map[string]string{"none": "vxlan", "vxlan": "none"} {
		n := &node{backend: was, facts: clusterFacts{Cluster: Cluster{FlannelBackend: is}}}
		if err := n.runNetwork(t.Context(), func() {}); err == nil ||
			!strings.Contains(err.Error(), "flannel-backend has become "+is) {
			t.Errorf("%s to %s: %v", was, is, err)
		}
	}
}

func TestFactsOf(t *testing.T) {
	f, err := factsOf(cluster(), []netip.Addr{netip.MustParseAddr("10.0.0.5")})
	if err != nil || f.apiPort != 6444 {
		t.Errorf("%+v, %v", f, err)
	}
	if got := f.routedServices(); !slices.Equal(got, []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}) {
		t.Errorf("a node without IPv6 has routes to %v", got)
	}
	c := cluster()
	c.APIServer = "https://127.0.0.1"
	if _, err := factsOf(c, nil); err == nil || !strings.Contains(err.Error(), "address of the API") {
		t.Errorf("%v", err)
	}
}

// TestAnotherContainerRuntime: where the settings name one, nothing of Umiak's containerd and of its images runs.
func TestAnotherContainerRuntime(t *testing.T) {
	own := []string{"containerd", "registries", "images", "sharing"}
	for endpoint, other := range map[string]bool{"": false, "unix:///run/crio/crio.sock": true} {
		a := newAgent(t, func(c *Config) { c.RuntimeEndpoint = endpoint })
		var parts []string
		for _, p := range a.Parts() {
			parts = append(parts, p.Name)
			for _, name := range p.After {
				if !slices.Contains(parts, name) {
					t.Errorf("%q: %s waits for %s, which does not come before it", endpoint, p.Name, name)
				}
			}
		}
		for _, name := range own {
			if slices.Contains(parts, name) == other {
				t.Errorf("%q: %s in %v", endpoint, name, parts)
			}
		}
		if slices.Contains(parts, "container-runtime") != other {
			t.Errorf("%q: %v", endpoint, parts)
		}
		var sections []string
		for _, source := range a.Sources() {
			sections = append(sections, source(t.Context()).Name)
		}
		if slices.Contains(sections, "Image archives") == other {
			t.Errorf("%q: %v", endpoint, sections)
		}
	}
}

// TestAddressOfTheKubelet: bind-address is the kubelet's on an agent.
func TestAddressOfTheKubelet(t *testing.T) {
	for text, want := range map[string]string{"": "", "0.0.0.0": "", "::": "", "192.0.2.1": "192.0.2.1"} {
		a := newAgent(t, func(c *Config) {
			if text != "" {
				c.BindAddress = netip.MustParseAddr(text)
			}
		})
		got := ""
		if ip := a.kubeletAddress(); ip.IsValid() {
			got = ip.String()
		}
		if got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// TestHeldPorts: a port for metrics is held where the settings switch it on and something serves it.
func TestHeldPorts(t *testing.T) {
	for name, c := range map[string]struct {
		arg      []string
		proxyOff bool
		want     bool
	}{
		"off":           {nil, false, false},
		"on":            {[]string{"metrics-bind-address=127.0.0.1"}, false, true},
		"another proxy": {[]string{"metrics-bind-address=127.0.0.1"}, true, false},
	} {
		a := newAgent(t, func(cfg *Config) { cfg.KubeProxyArg = c.arg })
		facts := clusterFacts{Cluster: Cluster{KubeProxyOff: c.proxyOff}, apiPort: 6444}
		got := slices.ContainsFunc(a.heldPorts(facts), func(h hostport.Held) bool {
			return h.Protocol == "tcp" && h.Port == 10249
		})
		if got != c.want {
			t.Errorf("%s: held %v", name, got)
		}
	}
}
