package joinapi

import (
	"net/http"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
)

// TestFurtherNamesOfLaterNodes: a node loses a further name to a node that joins under it and to a server, renews without
// it, and does not get it again.
func TestFurtherNamesOfLaterNodes(t *testing.T) {
	g := newGate(t)
	tok := g.token(Spec{})
	squatter := g.machine("squatter", "192.0.2.1")
	squatter.dns = []string{"node4.example.com", "server.example.com", "s2.example.com", "mine.example.com"}
	squatter.gets(joinwire.NodePath, tok, "192.0.2.1")
	g.is("it has claimed them", func(m *Members) bool { return m.named("node4.example.com") == "squatter" })

	g.machine("node4.example.com", "192.0.2.4").gets(joinwire.NodePath, tok, "192.0.2.4")
	g.is("the node name is the later node's", func(m *Members) bool {
		return m.named("node4.example.com") == "node4.example.com" && !m.hasName("squatter", "node4.example.com")
	})
	if _, err := g.tokens.Reserve(t.Context(), "s2.example.com", "the server's", nil, "server.example.com"); err != nil {
		t.Fatal(err)
	}
	g.is("the server has its names", func(m *Members) bool {
		return m.named("server.example.com") == "s2.example.com" && m.named("s2.example.com") == "s2.example.com" &&
			!m.hasName("squatter", "server.example.com") && !m.hasName("squatter", "s2.example.com")
	})
	for range 50 {
		squatter.gets(joinwire.RenewPath, nil, "192.0.2.1")
		if want := []string{"squatter", "mine.example.com"}; !slices.Equal(squatter.serving.DNSNames, want) {
			t.Fatalf("its certificate has the names %q, want %q", squatter.serving.DNSNames, want)
		}
	}
	if g.api.members.hasName("squatter", "server.example.com") || !g.api.members.hasName("squatter", "mine.example.com") {
		t.Error("its record has other names than its certificate")
	}
	// A name of a server's node cannot be a later machine's node name.
	other := g.machine("server.example.com", "192.0.2.5")
	if code, body := other.ask(joinwire.NodePath, tok, "192.0.2.5"); code != http.StatusServiceUnavailable {
		t.Errorf("a machine joins under a server's name: %d %s", code, body)
	}
}

// TestServiceNames: a node cannot have the name by which pods resolve a Service; NODE.DOMAIN is possible where no
// namespace has the name of the domain.
func TestServiceNames(t *testing.T) {
	g := newGate(t)
	tok := g.token(Spec{})
	_, err := g.tokens.Client.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "monitoring"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := g.machine("n", "192.0.2.1")
	n.dns = []string{"metrics.monitoring"}
	if code, body := n.ask(joinwire.NodePath, tok, "192.0.2.1"); code != http.StatusServiceUnavailable {
		t.Errorf("a node gets a Service's name: %d %s", code, body)
	}
	n.dns = []string{"n.lan"}
	n.gets(joinwire.NodePath, tok, "192.0.2.1")
	n.dns = []string{"metrics.monitoring", "n.lan"}
	n.gets(joinwire.RenewPath, nil, "192.0.2.1")
	if want := []string{"n", "n.lan"}; !slices.Equal(n.serving.DNSNames, want) {
		t.Errorf("its certificate has the names %q, want %q", n.serving.DNSNames, want)
	}
}

// TestNamesOrder: of nodes that have recorded one name, as by two servers at the same moment, every server prefers the
// same one, and only that one may have it in its Node.
func TestNamesOrder(t *testing.T) {
	const name = "x.example.com"
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	has := &addresses{Names: []string{name}}
	server := &member{name: "server", created: at(3), server: true, addrs: has}
	own := &member{name: name, created: at(4)}
	early, late := &member{name: "b", created: at(1), addrs: has}, &member{name: "a", created: at(2), addrs: has}
	for _, c := range []struct {
		name  string
		nodes []*member
		want  string
	}{
		{"none", []*member{{name: "c"}}, ""},
		{"the first to join", []*member{early, late}, "b"},
		{"joined at once", []*member{{name: "b", addrs: has}, {name: "a", addrs: has}}, "a"},
		{"a node name", []*member{early, late, own}, name},
		{"a server", []*member{early, late, own, server}, "server"},
	} {
		m := newMembers("")
		for _, n := range c.nodes {
			m.nodes[n.name] = n
		}
		a := &API{members: m}
		for range 20 { // the order of a map differs
			if got := m.named(name); got != c.want {
				t.Errorf("%s: %q has it, want %q", c.name, got, c.want)
			}
		}
		for _, n := range c.nodes {
			if n.further(name) && (a.RefuseName(n.name, name) == nil) != (n.name == c.want) {
				t.Errorf("%s: RefuseName of node %s: %v", c.name, n.name, a.RefuseName(n.name, name))
			}
		}
	}
}

// TestReserveClearsNames: a server takes its names from agents' nodes alone.
func TestReserveClearsNames(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	names := []string{"x.example.com", "y.example.com"}
	if _, err := tokens.Reserve(t.Context(), "s1", "password of s1", nil, names...); err != nil {
		t.Fatal(err)
	}
	if _, err := tokens.Reserve(t.Context(), "s2", "password of s2", nil, names[0]); err != nil {
		t.Fatal(err)
	}
	s, err := tokens.secrets().Get(t.Context(), "s1"+nodeSuffix, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := memberOf(s); !ok || !slices.Equal(m.addrs.Names, names) {
		t.Errorf("the other server has %+v", m)
	}
}
