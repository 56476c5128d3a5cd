package joinapi

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/pki"
)

// gate is a join API with machines that ask it.
type gate struct {
	*testing.T
	api    *API
	tokens Tokens
	shut   atomic.Bool // writes of node Secrets fail, as at a webhook
}

func newGate(t *testing.T) *gate {
	t.Helper()
	client := fake.NewClientset()
	g := &gate{T: t, tokens: Tokens{Client: client, CA: hash}}
	client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if g.shut.Load() {
			return true, nil, errors.New(`failed calling webhook "hook.example.com"`)
		}
		return false, nil, nil
	})
	signer, err := pki.Ensure(pki.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	g.api = New(Config{Signer: signer, Servers: &cluster{},
		Cluster: joinwire.Cluster{ServiceCIDR: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}},
		Own:     func() string { return "192.0.2.100:6443" }, Log: quiet})
	run(t, g.api, g.tokens)
	return g
}

// asker is a machine.
type asker struct {
	g    *gate
	name string
	key  *ecdsa.PrivateKey
	from string   // the address from which it asks
	dns  []string // further names for which it asks
	cert *x509.Certificate
	// serving is the kubelet's certificate as a server.
	serving *x509.Certificate
}

func (g *gate) machine(name, from string) *asker {
	return &asker{g: g, name: name, key: key(g), from: from}
}

// ask asks for addresses; with no token it shows its certificate.
func (m *asker) ask(path string, tok *token.Token, ips ...string) (int, string) {
	m.g.Helper()
	req := joinwire.NodeRequest{
		Name: m.name, IPs: ips, DNSNames: m.dns, Password: strings.Repeat("p", 30) + m.name,
		Kubelet: csr(m.g, m.key, name("system:node:"+m.name, "system:nodes"), nil),
		Agent:   csr(m.g, m.key, name("umiak:agent:"+m.name, "umiak:agents"), nil),
		Serving: csr(m.g, m.key, name("system:node:"+m.name, "system:nodes"), []string{m.name}),
	}
	body, err := json.Marshal(req)
	if err != nil {
		m.g.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(body))
	r.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(m.from), 4000).String()
	r.Header.Set(joinwire.VersionHeader, m.g.api.cfg.Version)
	r.TLS = &tls.ConnectionState{}
	if tok != nil {
		r.SetBasicAuth(tok.ID, tok.Secret)
	} else {
		r.TLS.PeerCertificates = []*x509.Certificate{m.cert}
	}
	w := httptest.NewRecorder()
	m.g.api.ServeHTTP(w, r)
	var resp joinwire.NodeResponse
	if w.Code == http.StatusOK && json.Unmarshal(w.Body.Bytes(), &resp) == nil && resp.Agent != "" {
		for text, to := range map[string]**x509.Certificate{resp.Agent: &m.cert, resp.Serving: &m.serving} {
			b, _ := pem.Decode([]byte(text))
			if *to, err = x509.ParseCertificate(b.Bytes); err != nil {
				m.g.Fatal(err)
			}
		}
	}
	return w.Code, w.Body.String()
}

// gets asks and wants an answer.
func (m *asker) gets(path string, tok *token.Token, ips ...string) {
	m.g.Helper()
	if code, body := m.ask(path, tok, ips...); code != http.StatusOK {
		m.g.Fatalf("%s of %s at %v: %d %s", path, m.name, ips, code, body)
	}
}

// is waits for what the API knows of a node's addresses.
func (g *gate) is(what string, f func(m *Members) bool) {
	g.Helper()
	eventually.True(g.T, what, func() bool { return f(g.api.members) })
}

func (g *gate) token(s Spec) *token.Token {
	g.Helper()
	s.Kind = token.Agent
	tok, _, err := g.tokens.Create(g.Context(), s)
	if err != nil {
		g.Fatal(err)
	}
	eventually.True(g.T, "the token", func() bool {
		_, why := g.api.ready.Load().known.token(tok.ID, tok.Secret, g.api.cfg.Now())
		return why == ""
	})
	return &tok
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// TestARefusedJoinLeavesNothing: who asks for the address of a node that runs has not used its token up, and has no
// name.
func TestARefusedJoinLeavesNothing(t *testing.T) {
	g := newGate(t)
	one := g.machine("one", "192.0.2.1")
	one.gets(joinwire.NodePath, g.token(Spec{}), "192.0.2.1")
	g.is("its address is its own", func(m *Members) bool { return m.holder(addr("192.0.2.1")) == "one" })

	once, thief := g.token(Spec{SingleUse: true}), g.machine("thief", "192.0.2.66")
	code, body := thief.ask(joinwire.NodePath, once, "192.0.2.66", "192.0.2.1")
	if code != http.StatusServiceUnavailable || !strings.Contains(body, "that of node one, which runs") {
		t.Errorf("another's address: %d %s", code, body)
	}
	if _, err := g.tokens.secrets().Get(t.Context(), "thief"+nodeSuffix,
		metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a refused join has left a name: %v", err)
	}
	thief.gets(joinwire.NodePath, once, "192.0.2.66")
}

// TestRenewalWithAnothersAddress: the older node gets no certificate for the address of the younger, nor one of the
// cluster's.
func TestRenewalWithAnothersAddress(t *testing.T) {
	g := newGate(t)
	tok := g.token(Spec{})
	older, younger := g.machine("older", "192.0.2.1"), g.machine("younger", "192.0.2.2")
	older.gets(joinwire.NodePath, tok, "192.0.2.1")
	younger.gets(joinwire.NodePath, tok, "192.0.2.2")
	g.is("both are known", func(m *Members) bool {
		return m.holder(addr("192.0.2.1")) == "older" && m.holder(addr("192.0.2.2")) == "younger"
	})
	for _, path := range []string{joinwire.RenewPath, joinwire.CheckPath, joinwire.NodePath} {
		var with *token.Token
		if path == joinwire.NodePath {
			with = tok
		}
		for _, ip := range []string{"192.0.2.2", "10.43.0.99", "192.0.2.100"} {
			if code, body := older.ask(path, with, ip); code == http.StatusOK {
				t.Errorf("%s with %s: %s", path, ip, body)
			}
		}
	}
	older.gets(joinwire.RenewPath, nil, "192.0.2.3") // its own new one
	g.is("it has the new one", func(m *Members) bool {
		has,
			_ := m.registered("older", addr("192.0.2.3"), false)
		return has
	})
}

// TestFurtherNames: a node gets a certificate for names that no other node and no server has, may have them in its Node,
// and frees those that it does not name any more.
func TestFurtherNames(t *testing.T) {
	g := newGate(t)
	g.api.cfg.DNSNames = []string{"kubernetes.default.svc.cluster.local", "*.servers.example.com", "api.example.com"}
	tok := g.token(Spec{})
	one, two := g.machine("one", "192.0.2.1"), g.machine("two", "192.0.2.2")
	one.dns = []string{"one.example.com", "home.example.org"}
	one.gets(joinwire.NodePath, tok, "192.0.2.1")
	if want := []string{"one", "one.example.com", "home.example.org"}; !slices.Equal(one.serving.DNSNames, want) ||
		len(one.cert.DNSNames) > 0 {
		t.Errorf("names %q, as a client %q", one.serving.DNSNames, one.cert.DNSNames)
	}
	g.is("its names are its own", func(m *Members) bool { return m.named("one.example.com") == "one" })
	if err := g.api.RefuseName("one", "one.example.com"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"one.example.com", "two.example.com"} {
		if err := g.api.RefuseName("two", name); err == nil {
			t.Errorf("node two may have the name %s, which it has not registered", name)
		}
	}
	for _, path := range []string{joinwire.NodePath, joinwire.RenewPath} {
		for _, name := range []string{"one.example.com", "api.example.com", "x.servers.example.com", "web.default.svc",
			"kubernetes.default.svc.cluster.local", "localhost", "x.localhost", "kubernetes", "10.0.0.1", "*.example.com",
			"Two.example.com", ""} {
			two.dns = []string{name}
			with := tok
			if path == joinwire.RenewPath {
				with = nil
			}
			code, body := two.ask(path, with, "192.0.2.2")
			if code == http.StatusOK && path == joinwire.RenewPath && name == "one.example.com" {
				// A name of another node is left out of a renewal.
				if want := []string{"two"}; !slices.Equal(two.serving.DNSNames, want) {
					t.Errorf("a renewal with another's name has the names %q, want %q", two.serving.DNSNames, want)
				}
			} else if code == http.StatusOK || path == joinwire.RenewPath && name == "one.example.com" {
				t.Errorf("%s: node two gets the name %q: %s", path, name, body)
			}
		}
		two.dns = nil
		two.gets(joinwire.NodePath, tok, "192.0.2.2")
	}
	one.dns = nil
	one.gets(joinwire.RenewPath, nil, "192.0.2.1")
	g.is("the name is free", func(m *Members) bool { return m.named("one.example.com") == "" })
	two.dns = []string{"one.example.com"}
	two.gets(joinwire.RenewPath, nil, "192.0.2.2")
}

// TestSquatter: an address that a node has claimed and never asked from is that of the machine that asks from it.
func TestSquatter(t *testing.T) {
	g := newGate(t)
	tok := g.token(Spec{})
	squatter := g.machine("squatter", "192.0.2.1")
	squatter.gets(joinwire.NodePath, tok, "192.0.2.1", "192.0.2.2")
	g.is("it has claimed both", func(m *Members) bool {
		return m.holder(addr("192.0.2.2")) == "squatter" && m.nodes["squatter"].proven(addr("192.0.2.1")) &&
			!m.nodes["squatter"].proven(addr("192.0.2.2"))
	})
	g.machine("honest", "192.0.2.2").gets(joinwire.NodePath, tok, "192.0.2.2")
	g.is("the address is the honest one's", func(m *Members) bool {
		return m.holder(addr("192.0.2.2")) == "honest" && m.Disputed("squatter", addr("192.0.2.2"))
	})
	if code, body := squatter.ask(joinwire.RenewPath, nil, "192.0.2.1",
		"192.0.2.2"); code != http.StatusServiceUnavailable {
		t.Errorf("it takes it back: %d %s", code, body)
	}
}

// TestNodesOfEarlierReleases: a node that joined before there were records checks and renews also while nothing can be
// written, and has a record as soon as that can be.
func TestNodesOfEarlierReleases(t *testing.T) {
	g := newGate(t)
	early := g.machine("early", "192.0.2.1")
	early.gets(joinwire.NodePath, g.token(Spec{}), "192.0.2.1")
	s, err := g.tokens.secrets().Get(t.Context(), "early"+nodeSuffix, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	delete(s.Data, keyAddresses)
	delete(s.Data, keyKeys)
	if _, err := g.tokens.secrets().Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	g.is("it has no record", func(m *Members) bool {
		return m.recordless("early") &&
			m.holder(addr("192.0.2.1")) == ""
	})
	spki := early.cert.RawSubjectPublicKeyInfo
	if err := g.api.Admits(t.Context(), "early", spki, false); err != nil {
		t.Errorf("its certificate: %v", err)
	}
	if err := g.api.Refuse(t.Context(), "early", addr("192.0.2.1"), false); err != nil {
		t.Errorf("its address: %v", err)
	}
	g.shut.Store(true)
	early.gets(joinwire.CheckPath, nil, "192.0.2.1")
	early.gets(joinwire.RenewPath, nil, "192.0.2.1")
	g.shut.Store(false)
	early.gets(joinwire.CheckPath, nil, "192.0.2.1")
	g.is("it is recorded", func(m *Members) bool {
		return m.holder(addr("192.0.2.1")) == "early" && slices.Equal(m.nodes["early"].keys, []string{KeyHash(spki)})
	})
	// From now on it renews as it is without a write, and gets nothing that could not be recorded.
	g.shut.Store(true)
	early.gets(joinwire.RenewPath, nil, "192.0.2.1")
	if code, body := early.ask(joinwire.RenewPath, nil, "192.0.2.9"); code != http.StatusInternalServerError {
		t.Errorf("an address that cannot be recorded: %d %s", code, body)
	}
}

// TestSupportedAddresses: what a node adds later, and does not ask from, is its own word alone; what it gives up is
// not its any more.
func TestSupportedAddresses(t *testing.T) {
	g := newGate(t)
	n := g.machine("n", "192.0.2.1")
	n.gets(joinwire.NodePath, g.token(Spec{}), "192.0.2.1", "2001:db8::1")
	has := func(ip string) func(*Members) bool {
		return func(m *Members) bool { has, _ := m.registered("n", addr(ip), false); return has }
	}
	g.is("it is known", has("2001:db8::1"))
	changed := g.api.AddressesChanged()
	n.gets(joinwire.RenewPath, nil, "192.0.2.1", "192.0.2.50")
	g.is("it has another", has("192.0.2.50"))
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	for ip, want := range map[string]bool{"192.0.2.1": true, "192.0.2.50": false, "2001:db8::1": false} {
		if g.api.Supported("n", addr(ip)) != want {
			t.Errorf("%s is supported: %v", ip, !want)
		}
	}
	if !g.api.Unregistered("n", addr("2001:db8::1")) || g.api.Unregistered("n", addr("192.0.2.50")) ||
		g.api.Unregistered("other", addr("192.0.2.50")) {
		t.Error("what is registered is not what it should be")
	}
	n.from = "192.0.2.50"
	n.gets(joinwire.CheckPath, nil, "192.0.2.1", "192.0.2.50")
	g.is("it has asked from it", func(*Members) bool { return g.api.Supported("n", addr("192.0.2.50")) })
	if !g.api.Supported("n", addr("192.0.2.1")) {
		t.Error("the one it asked from before is not")
	}
}
