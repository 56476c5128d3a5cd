package joinapi

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// dismissing is a cluster that records who is dismissed.
type dismissing struct {
	cluster
	mu  sync.Mutex
	who []string
}

func (d *dismissing) Dismiss(_ context.Context, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.who = append(d.who, name)
	return nil
}

func (d *dismissing) dismissed() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.who)
}

// TestOnlyServersAreDismissed is an attack of M11: an agent joins under the name of a server that has no node of its
// own, and its Node is deleted. That frees its name and takes no member out of the cluster.
func TestOnlyServersAreDismissed(t *testing.T) {
	node := func(name string, labels map[string]string) *metav1.PartialObjectMetadata {
		return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	meta := metadatafake.NewSimpleMetadataClient(scheme, node("agent", map[string]string{"app": "x"}),
		node("server", map[string]string{wellknown.ServerRole: "true"}))
	tokens := Tokens{Client: fake.NewClientset(nodeSecret("agent", strings.Repeat("p", 30), "t", token.Agent)),
		CA: hash}
	servers := &dismissing{cluster: cluster{held: []string{"agent", "server"}}}
	api := New(Config{Servers: servers, Own: func() string { return "" }, Log: quiet})
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- api.Serve(ctx, meta, tokens, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	eventually.True(t, "Nodes that are known", func() bool {
		there := api.claims.nodes.Load()
		return there != nil && (*there)("agent") && (*there)("server")
	})
	nodes := meta.Resource(corev1.SchemeGroupVersion.WithResource("nodes"))
	// in this order: what the first leads to has begun when the second is seen
	for _, name := range []string{"agent", "server"} {
		if err := nodes.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if name == "agent" {
			eventually.True(t, "a name that is free", func() bool { return api.ready.Load().known.node("agent") == nil })
		}
	}
	eventually.True(t, "a server that is dismissed", func() bool { return slices.Contains(servers.dismissed(), "server") })
	if got := servers.dismissed(); !slices.Equal(got, []string{"server"}) {
		t.Errorf("%q were taken out of the cluster", got)
	}
}

// TestServersNamesAreKept is the other half: the claim of a server is not freed by age, whether it has a node or not,
// and an agent does not get its name.
func TestServersNamesAreKept(t *testing.T) {
	g := newGate(t)
	now := time.Now()
	g.api.cfg.Now = func() time.Time { return now.Add(100 * 365 * 24 * time.Hour) }
	for name, c := range map[string]struct {
		kind      token.Kind
		held      []string
		abandoned bool
	}{
		"server": {token.Server, nil, false}, "member": {token.Agent, []string{"member"}, false},
		"agent": {token.Agent, nil, true},
	} {
		s := nodeSecret(name, strings.Repeat("q", 30), "t", c.kind)
		s.CreationTimestamp = metav1.NewTime(now)
		api := New(Config{Servers: &cluster{held: c.held}, Own: func() string { return "" }, Log: quiet,
			Now: g.api.cfg.Now})
		if got := api.abandoned(s); got != c.abandoned {
			t.Errorf("the claim of %s after a hundred years: abandoned is %v", name, got)
		}
	}
	g.api.cfg.Now = time.Now
	claim := nodeSecret("server", strings.Repeat("q", 30), "t", token.Server)
	claim.CreationTimestamp = metav1.NewTime(now.Add(-1000 * time.Hour))
	if _, err := g.tokens.secrets().Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the claim", func() bool { return g.api.ready.Load().known.node("server") != nil })
	if code, body := g.machine("server", "192.0.2.7").ask(joinwire.NodePath, g.token(Spec{}),
		"192.0.2.7"); code == http.StatusOK || !strings.Contains(body, string(joinwire.NameTaken)) {
		t.Errorf("an agent as a server: %d %s", code, body)
	}
}

// TestNamesInServersCertificatesAreNoNodes is the first attack of M11: an agent's token at a server that does not
// have the name itself.
func TestNamesInServersCertificatesAreNoNodes(t *testing.T) {
	g := newGate(t)
	for server, list := range map[string][]string{"s1": {"API.example.org", "*.apps.example.org", "s1"},
		"s2": {"b.example.org", "S2.lan"}} {
		if err := g.tokens.publishNames(t.Context(), server, list, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "the names of both", func() bool { return len(g.api.ready.Load().known.serverNames("")) == 5 })
	tok := g.token(Spec{})
	for _, name := range []string{"api.example.org", "console.apps.example.org", "app2.apps.example.org",
		"b.example.org", "s1", "s2.lan"} {
		if code, body := g.machine(name, "192.0.2.7").ask(joinwire.NodePath, tok, "192.0.2.7"); code == http.StatusOK {
			t.Errorf("a certificate for %s: %s", name, body)
		}
	}
	g.machine("apps.example.org", "192.0.2.7").gets(joinwire.NodePath, tok, "192.0.2.7")
}
