package join

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	metafake "k8s.io/client-go/metadata/fake"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/umiak-io/umiak/agent/apibalancer"
	"github.com/umiak-io/umiak/internal/joinclient"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/token"
	serverjoin "github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

var quiet = slog.New(slog.DiscardHandler)

// fakeServer is the join API of a server, with its certificates, on a cluster that is a fake.
type fakeServer struct {
	*httptest.Server
	pki    *pki.PKI
	kube   kubernetes.Interface
	tokens serverjoin.Tokens
	api    *serverjoin.API
	now    atomic.Pointer[time.Time]
}

// oneServer is a cluster of one server that takes no others in: a node asks nothing else of it.
type oneServer struct{ serverjoin.Servers }

func (oneServer) Datastore() joinwire.Datastore         { return "" }
func (oneServer) Holds(string) bool                     { return false }
func (oneServer) Dismiss(context.Context, string) error { return nil }

// clock is the time of a pointer, or the real one.
func clock(p *atomic.Pointer[time.Time]) func() time.Time {
	return func() time.Time {
		if at := p.Load(); at != nil {
			return *at
		}
		return time.Now()
	}
}

func newServer(t *testing.T) *fakeServer {
	t.Helper()
	return newServerIn(t, t.TempDir())
}

// newServerIn is newServer with authorities that may lie in dir.
func newServerIn(t *testing.T, dir string) *fakeServer {
	t.Helper()
	s := &fakeServer{}
	p, err := pki.Ensure(pki.Config{Dir: dir, Now: clock(&s.now)})
	if err != nil {
		t.Fatal(err)
	}
	crt, key := filepath.Join(dir, "s.crt"), filepath.Join(dir, "s.key")
	if err := p.Add(pki.Leaf{Name: "s", CA: pki.ServerCA, CertFile: crt, KeyFile: key, CommonName: "s", Server: true,
		WithCA: true, DNSNames: []string{token.ServerName}}); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	hash, _, err := serverjoin.CAHash(p.CAPEM(pki.ServerCA))
	if err != nil {
		t.Fatal(err)
	}
	s.pki, s.kube = p, fake.NewClientset()
	s.tokens = serverjoin.Tokens{CA: hash, Client: s.kube}
	s.api = serverjoin.New(serverjoin.Config{Signer: p, Servers: oneServer{},
		Cluster: joinwire.Cluster{ClusterDomain: "cluster.local"}, Own: func() string { return "127.0.0.1:9" },
		Log: quiet, Now: clock(&s.now)})
	s.Server = httptest.NewUnstartedServer(s.api)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	own := s.Listener.Addr().(*net.TCPAddr)
	port := int32(own.Port)
	name := "https"
	if _, err := s.kube.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes",
			Labels: map[string]string{"kubernetes.io/service-name": "kubernetes"}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}},
		Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	scheme := metafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	go func() {
		done <- s.api.Serve(ctx, metafake.NewSimpleMetadataClient(scheme, []runtime.Object{}...), s.tokens,
			func() { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return s
}

func (s *fakeServer) token(t *testing.T, spec serverjoin.Spec) token.Token {
	t.Helper()
	if spec.Kind == "" {
		spec.Kind = token.Agent
	}
	tok, _, err := s.tokens.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// machine is a node that joins.
type machine struct {
	dirs layout.Dirs
	lb   *apibalancer.Balancer
	addr string
	now  atomic.Pointer[time.Time]
}

func newMachine(t *testing.T, s *fakeServer) *machine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{dirs: layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}, addr: l.Addr().String()}
	_ = l.Close()
	if err := os.MkdirAll(m.dirs.Agent(), 0o700); err != nil {
		t.Fatal(err)
	}
	if m.lb, err = apibalancer.New(apibalancer.Config{Listen: m.addr, File: m.dirs.Servers(),
		Given: s.Listener.Addr().String(), Log: quiet}); err != nil {
		t.Fatal(err)
	}
	run(t, m.lb.Run)
	return m
}

// run runs a part until the test ends, and returns when it is ready.
func run(t *testing.T, part func(context.Context, func()) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- part(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-ready
}

func (m *machine) joiner(t *testing.T, s *fakeServer, tok token.Token) *Joiner {
	t.Helper()
	j, err := New(Config{Dirs: m.dirs, Server: s.Listener.Addr().String(), Token: tok, Local: m.addr, Balancer: m.lb,
		Log: quiet, Now: clock(&m.now)})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

var n1 = joinwire.Node{Name: "n1", IPs: []string{"192.0.2.7"}}

func (m *machine) cert(t *testing.T, id string) *x509.Certificate {
	t.Helper()
	c, err := tls.LoadX509KeyPair(filepath.Join(m.dirs.AgentPKI(), id+".crt"),
		filepath.Join(m.dirs.AgentPKI(), id+".key"))
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func TestOnlyWhoHasAuthenticatedLearnsTheServersRelease(t *testing.T) {
	s := newServer(t)
	tok := s.token(t, serverjoin.Spec{})
	for secret, told := range map[string]bool{"": false, "wrong": false, tok.Secret: true} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+joinwire.NodePath,
			strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if secret != "" {
			r.SetBasicAuth(tok.ID, secret)
		}
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DisableKeepAlives: true}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if has := resp.Header.Get(joinwire.VersionHeader) != ""; has != told || resp.StatusCode == http.StatusOK {
			t.Errorf("good token %v: %s, %v", told, resp.Status, resp.Header)
		}
	}
}

func TestJoin(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	tok := s.token(t, serverjoin.Spec{SingleUse: true})
	c, err := m.joiner(t, s, tok).Join(t.Context(), n1)
	if err != nil {
		t.Fatal(err)
	}
	if c.APIServer != "https://"+m.addr || c.ClusterDomain != "cluster.local" {
		t.Errorf("%+v", c)
	}
	for id, user := range map[string]string{nodecerts.KubeletClient: "system:node:n1",
		nodecerts.KubeletServing: "system:node:n1", nodecerts.AgentClient: "umiak:agent:n1"} {
		crt := m.cert(t, id)
		if crt.Subject.CommonName != user || time.Until(crt.NotAfter) > serverjoin.NodeLifetime ||
			time.Until(crt.NotAfter) < serverjoin.NodeLifetime-time.Hour {
			t.Errorf("%s: %s until %s", id, crt.Subject, crt.NotAfter)
		}
	}
	if crt := m.cert(t, nodecerts.KubeletServing); strings.Join(crt.DNSNames, ",") != "n1" ||
		len(crt.IPAddresses) != 1 || crt.IPAddresses[0].String() != "192.0.2.7" {
		t.Errorf("serving: %q %v", crt.DNSNames, crt.IPAddresses)
	}
	rc, err := clientcmd.BuildConfigFromFlags("", m.dirs.KubeletKubeconfig())
	if err != nil || rc.Host != c.APIServer || rc.TLSClientConfig.ServerName != token.ServerName {
		t.Errorf("kubeconfig: %+v, %v", rc, err)
	}
	if err := filepath.WalkDir(m.dirs.Data, func(p string, d fs.DirEntry, err error) error {
		info, _ := d.Info()
		if err == nil && !d.IsDir() && info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(p, ".crt") {
			t.Errorf("%s has mode %o", p, info.Mode().Perm())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if list, _ := m.lb.Servers(); len(list) != 2 {
		t.Errorf("servers: %q", list)
	}

	// It starts again with nobody there and nothing given.
	s.Close()
	before := m.cert(t, nodecerts.AgentClient)
	again, err := m.joiner(t, s, token.Token{}).Join(t.Context(), n1)
	if err != nil || again.ClusterDomain != "cluster.local" {
		t.Fatalf("%+v, %v", again, err)
	}
	if !m.cert(t, nodecerts.AgentClient).Equal(before) {
		t.Error("its certificate has changed")
	}
}

func TestRefusals(t *testing.T) {
	s := newServer(t)
	good := s.token(t, serverjoin.Spec{})
	m := newMachine(t, s)
	refused := func(m *machine, tok token.Token, node joinwire.Node, code joinwire.Code) {
		t.Helper()
		_, err := m.joiner(t, s, tok).Join(t.Context(), node)
		var e *joinwire.Error
		if !errors.As(err, &e) || e.Code != code {
			t.Errorf("want %s, got %v", code, err)
		}
		if err != nil && strings.Contains(err.Error(), tok.Secret) {
			t.Errorf("the secret stands in %v", err)
		}
	}
	refused(m, token.New(s.tokens.CA, "other"), n1, joinwire.BadToken)
	refused(m, token.Token{Secret: "a-password"}, n1, joinwire.BadToken)
	refused(m, good, joinwire.Node{Name: "n1", IPs: []string{"127.0.0.1"}}, joinwire.BadRequest)
	if _, err := m.joiner(t, s, token.New(strings.Repeat("0", 64), good.ID)).Join(t.Context(), n1); !errors.Is(err,
		token.ErrWrongServer) {
		t.Error(err)
	}
	if _, err := m.joiner(t, s, token.Token{}).Join(t.Context(), n1); err == nil ||
		!strings.Contains(err.Error(), "token") {
		t.Error(err)
	}
	if _, err := m.joiner(t, s, good).Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	refused(newMachine(t, s), good, n1, joinwire.NameTaken)
}

func TestPassword(t *testing.T) {
	s := newServer(t)
	file := filepath.Join(t.TempDir(), "token")
	l := serverjoin.LongLived{ID: serverjoin.ServerID, Kind: token.Server, File: file, Given: "hunter2-hunter2"}
	if _, err := s.tokens.Ensure(t.Context(), l, quiet); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "a join with the password", func() bool {
		_, err := newMachine(t, s).joiner(t, s, token.Token{Secret: "hunter2-hunter2"}).Join(t.Context(),
			joinwire.Node{Name: "p", IPs: []string{"192.0.2.21"}})
		return err == nil
	})
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := token.Parse(string(raw))
	if err != nil || tok.CA != s.tokens.CA || tok.Secret != "hunter2-hunter2" {
		t.Fatalf("%v, %v", tok, err)
	}
	if _, err := newMachine(t, s).joiner(t, s, tok).Join(t.Context(), n1); err != nil {
		t.Error(err)
	}
	// A few wrong ones, and the address has to wait, but not with a token.
	var e *joinwire.Error
	for range 12 {
		_, err = newMachine(t, s).joiner(t, s, token.Token{Secret: "wrong"}).try(t,
			joinwire.Node{Name: "x", IPs: []string{"192.0.2.22"}})
	}
	if !errors.As(err, &e) || e.Code != joinwire.Busy {
		t.Errorf("%v", err)
	}
	if _, err := newMachine(t, s).joiner(t, s, s.token(t, serverjoin.Spec{})).Join(t.Context(),
		joinwire.Node{Name: "y", IPs: []string{"192.0.2.23"}}); err != nil {
		t.Error(err)
	}
}

// TestAPasswordIsSentOnce: a machine that has joined with a password alone and was deleted from the cluster sends the
// password to its cluster again, and nothing to a server with another CA.
func TestAPasswordIsSentOnce(t *testing.T) {
	const password = "hunter2-hunter2"
	s, fake := newServer(t), newServer(t)
	for _, s := range []*fakeServer{s, fake} {
		l := serverjoin.LongLived{ID: serverjoin.ServerID, Kind: token.Server,
			File: filepath.Join(t.TempDir(), "token"), Given: password}
		if _, err := s.tokens.Ensure(t.Context(), l, quiet); err != nil {
			t.Fatal(err)
		}
	}
	var heard atomic.Int32
	answers := fake.Config.Handler
	fake.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heard.Add(1)
		answers.ServeHTTP(w, r)
	})
	m := newMachine(t, s)
	eventually.True(t, "a join with the password", func() bool {
		_, err := m.joiner(t, s, token.Token{Secret: password}).Join(t.Context(), n1)
		return err == nil
	})
	if _, err := s.tokens.Free(t.Context(), n1.Name); err != nil {
		t.Fatal(err)
	}
	// Its certificates are gone too, as on a disk that was repaired: it has to join.
	if err := os.Remove(m.dirs.Joined()); err != nil {
		t.Fatal(err)
	}
	if err := m.lb.Set([]string{fake.Listener.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	_, err := m.joiner(t, fake, token.Token{Secret: password}).Join(t.Context(), n1)
	if !errors.Is(err, token.ErrWrongServer) || !strings.Contains(err.Error(), "the password was not sent") ||
		heard.Load() != 0 {
		t.Errorf("another CA: %v; it has got %d requests", err, heard.Load())
	}
	if _, err := m.joiner(t, s, token.Token{Secret: password}).try(t, n1); err != nil {
		t.Errorf("its own cluster: %v", err)
	}
}

// try is one attempt.
func (j *Joiner) try(t *testing.T, n joinwire.Node) (*joined, error) {
	j.node = n
	err := j.enroll(t.Context())
	return j.joined, err
}

func TestRenewal(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	j := m.joiner(t, s, s.token(t, serverjoin.Spec{}))
	if _, err := j.Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	if d := time.Until(j.due()); d > 20*24*time.Hour || d < 18*24*time.Hour {
		t.Errorf("it renews after %s", d)
	}
	old := m.cert(t, nodecerts.AgentClient)
	key, _ := os.ReadFile(j.file(nodecerts.AgentClient + ".key"))

	// A restart with another address: the certificate follows, through the balancer.
	j = m.joiner(t, s, token.Token{})
	moved := joinwire.Node{Name: "n1", IPs: []string{"192.0.2.8"}}
	if _, err := j.Join(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	run(t, j.Run)
	defer func() { t.Log(j.Section(t.Context())) }()
	eventually.True(t, "a certificate for the new address", func() bool {
		return len(m.cert(t, nodecerts.KubeletServing).IPAddresses) == 1 &&
			m.cert(t, nodecerts.KubeletServing).IPAddresses[0].String() == "192.0.2.8" && !j.due().IsZero()
	})
	if m.cert(t, nodecerts.AgentClient).Equal(old) {
		t.Error("the client certificate is the old one")
	}
	if now, _ := os.ReadFile(j.file(nodecerts.AgentClient + ".key")); string(now) != string(key) {
		t.Error("the key has changed")
	}

	// Deleted from the cluster: it is told so, and its token brings it back.
	if err := s.kube.CoreV1().Secrets("kube-system").Delete(t.Context(), "n1.node-password.umiak",
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var e *joinwire.Error
	eventually.True(t, "the check to be refused", func() bool {
		err := j.renew(t.Context(), joinwire.CheckPath)
		return errors.As(err, &e) && e.Code == joinwire.UnknownNode
	})
	eventually.True(t, "the renewal to be refused", func() bool {
		err := j.renew(t.Context(), joinwire.RenewPath)
		return errors.As(err, &e) && e.Code == joinwire.UnknownNode
	})
	j.cfg.Token = s.token(t, serverjoin.Spec{})
	eventually.True(t, "the renewal with a new token", func() bool { return j.renew(t.Context(), joinwire.RenewPath) == nil })
}

// A box that lay in a drawer for a year: its certificates have ended, and it comes back.
func TestRenewalAfterTheEnd(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	j := m.joiner(t, s, s.token(t, serverjoin.Spec{}))
	if _, err := j.Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(40 * 24 * time.Hour) // the fake server's own certificate is still good then
	m.now.Store(&later)
	s.now.Store(&later)
	if !j.due().Before(later) {
		t.Fatalf("due %s", j.due())
	}
	if err := j.renew(t.Context(), joinwire.RenewPath); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(m.dirs.NodePassword(), []byte(strings.Repeat("x", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	var e *joinwire.Error
	if err := j.renew(t.Context(), joinwire.RenewPath); !errors.As(err, &e) || e.Code != joinwire.NameTaken {
		t.Errorf("without its password: %v", err)
	}
	// A certificate of another cluster says nothing here, and its server is not taken for one of this.
	other := newServer(t)
	own, err := j.keyPair(nodecerts.AgentClient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (joinclient.Client{CAs: s.pki.CAPEM(pki.ServerCA), Certificate: own, Now: j.cfg.Now}).Post(t.Context(),
		other.Listener.Addr().String(), joinwire.RenewPath, &joinwire.NodeRequest{},
		&joinwire.NodeResponse{}); err == nil || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("a server of another cluster: %v", err)
	}
	m2 := newMachine(t, other)
	if _, err := m2.joiner(t, other, other.token(t, serverjoin.Spec{})).Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	foreign, err := tls.LoadX509KeyPair(filepath.Join(m2.dirs.AgentPKI(), nodecerts.AgentClient+".crt"),
		filepath.Join(m2.dirs.AgentPKI(), nodecerts.AgentClient+".key"))
	if err != nil {
		t.Fatal(err)
	}
	req, err := j.request()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (joinclient.Client{CAs: s.pki.CAPEM(pki.ServerCA), Certificate: &foreign,
		Now: j.cfg.Now}).Post(t.Context(), s.Listener.Addr().String(), joinwire.RenewPath, req,
		&joinwire.NodeResponse{}); !errors.As(err, &e) || e.Code != joinwire.BadIdentity {
		t.Errorf("with a foreign certificate: %v", err)
	}
}

func TestWhatCannotBeReadIsMadeAnew(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	tok := s.token(t, serverjoin.Spec{})
	if _, err := m.joiner(t, s, tok).Join(t.Context(), n1); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{m.dirs.Joined(), filepath.Join(m.dirs.AgentPKI(), nodecerts.KubeletClient+".crt"),
		filepath.Join(m.dirs.AgentPKI(), nodecerts.AgentClient+".key"), filepath.Join(m.dirs.AgentPKI(), serverCA)} {
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := m.joiner(t, s, tok).Join(t.Context(), n1); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if _, err := m.joiner(t, s, token.Token{}).Join(t.Context(), n1); err != nil {
			t.Errorf("%s is still broken: %v", file, err)
		}
	}
}

func TestWrongClock(t *testing.T) {
	s := newServer(t)
	m := newMachine(t, s)
	at := time.Unix(1000, 0)
	m.now.Store(&at)
	j := m.joiner(t, s, s.token(t, serverjoin.Spec{}))
	done := make(chan error, 1)
	go func() {
		_, err := j.Join(context.Background(), n1)
		done <- err
	}()
	eventually.True(t, "the wrong clock in the status", func() bool {
		for _, r := range j.Section(t.Context()).Rows {
			if r.State == "waiting to join" && strings.Contains(r.Detail, "1970") {
				return true
			}
		}
		return false
	})
	now := time.Now()
	m.now.Store(&now)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it does not join once the clock is set")
	}
}

func FuzzParseJoined(f *testing.F) {
	f.Add([]byte(`{"node":"n","ips":["1.2.3.4"],"cluster":{"apiServer":"https://x"},"lifetime":1}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := parseJoined(raw); err == nil && (s.Node == "" || s.Lifetime <= 0) {
			t.Errorf("%q is taken", raw)
		}
	})
}
