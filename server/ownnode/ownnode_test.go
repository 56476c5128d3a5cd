package ownnode

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/umiak-io/umiak/agent"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/kubeclient"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/nodecerts"
	"github.com/umiak-io/umiak/internal/wellknown"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// fakeAPI is an API server with the Secrets of kube-system and one Node.
type fakeAPI struct {
	mu      sync.Mutex
	secrets map[string]*corev1.Secret // by name
	labels  map[string]any            // of the Node
	patches []string                  // of the Node
	changed chan struct{}             // gets a value with each Secret, each patch, and each look at the Nodes
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer := func(code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v)
	}
	refuse := func(code int, reason string) {
		answer(code, map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
			"reason": reason})
	}
	name, isSecret := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/kube-system/secrets")
	name = strings.TrimPrefix(name, "/")
	switch {
	case isSecret && r.Method == http.MethodGet && name == "":
		list := corev1.SecretList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "SecretList"}}
		for _, s := range a.secrets {
			list.Items = append(list.Items, *s)
		}
		answer(http.StatusOK, list)
	case isSecret && r.Method == http.MethodGet:
		if s := a.secrets[name]; s != nil {
			answer(http.StatusOK, s)
		} else {
			refuse(http.StatusNotFound, "NotFound")
		}
	case isSecret && (r.Method == http.MethodPost || r.Method == http.MethodPut):
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		o, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), b.Bytes()) // JSON or protobuf
		s, ok := o.(*corev1.Secret)
		if err != nil || !ok {
			refuse(http.StatusBadRequest, "BadRequest")
			return
		}
		s.APIVersion, s.Kind = "v1", "Secret"
		a.secrets[s.Name] = s
		a.changed <- struct{}{}
		answer(http.StatusOK, s)
	case r.URL.Path == "/api/v1/nodes":
		a.changed <- struct{}{}
		a.serveNodes(w, r)
	case r.URL.Path == "/api/v1/nodes/s1" && r.Method == http.MethodPatch:
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		a.patches = append(a.patches, b.String())
		a.changed <- struct{}{}
		answer(http.StatusOK, a.node())
	default:
		refuse(http.StatusNotFound, "NotFound")
	}
}

// count returns the number of patches.
func (a *fakeAPI) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.patches)
}

func (a *fakeAPI) node() map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "Node",
		"metadata": map[string]any{"name": "s1", "resourceVersion": "7", "labels": a.labels}}
}

// serveNodes answers a list, or a watch that begins with the Node.
func (a *fakeAPI) serveNodes(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	send := func(v any) {
		_ = json.NewEncoder(w).Encode(v)
		w.(http.Flusher).Flush()
	}
	q := r.URL.Query()
	if q.Get("watch") == "" {
		send(map[string]any{"apiVersion": "v1", "kind": "NodeList", "metadata": map[string]any{"resourceVersion": "7"},
			"items": []any{a.node()}})
		return
	}
	if q.Get("sendInitialEvents") == "true" {
		send(map[string]any{"type": "ADDED", "object": a.node()})
		send(map[string]any{"type": "BOOKMARK", "object": map[string]any{"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{"resourceVersion": "7",
				"annotations": map[string]any{"k8s.io/initial-events-end": "true"}}}})
	}
	a.mu.Unlock() // others are served while the watch waits
	<-r.Context().Done()
	a.mu.Lock()
}

// server is what a test's Node needs of its server.
type server struct {
	api  *fakeAPI
	cfg  Config
	logs *bytes.Buffer
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{api: &fakeAPI{secrets: map[string]*corev1.Secret{}, changed: make(chan struct{}, 16)},
		logs: &bytes.Buffer{}}
	srv := httptest.NewServer(s.api)
	t.Cleanup(srv.Close)
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	if err := os.MkdirAll(d.Agent(), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(d.Data, "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: %q}}]\n"+
		"contexts: [{name: a, context: {cluster: a}}]\n", srv.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	addrs, err := nodeip.New(nodeip.Config{Asked: nodeip.At(netip.MustParseAddr("192.0.2.7")),
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	clients := kubeclient.Source{Kubeconfig: kubeconfig}
	s.cfg = Config{
		Dirs: d, Name: "s1", URL: "https://127.0.0.1:6443", Addresses: addrs,
		Facts: joinwire.Cluster{ClusterDomain: "c.local", FlannelBackend: "vxlan"}, PKI: p, Clients: clients,
		WaitReady: func(context.Context) error { return nil }, Log: slog.New(slog.NewTextHandler(s.logs, nil)),
		Access: joinapi.Access{Clients: clients, ServerCA: func() []byte { return p.CAPEM(pki.ServerCA) },
			Secret: p.SharedSecret},
	}
	return s
}

// run runs f until the function that it returns is called. await waits until f is ready.
func run(t *testing.T, f func(context.Context, func()) error) (await, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	up, ended := make(chan struct{}), make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = f(ctx, sync.OnceFunc(func() { close(up) }))
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return func() {
		t.Helper()
		select {
		case <-up:
		case <-ended:
			t.Fatalf("it ended with %v", err)
		}
	}, stop
}

// TestJoinWritesTheNodesIdentity: the files that agent.Joiner promises, once the API server answers.
func TestJoinWritesTheNodesIdentity(t *testing.T) {
	s := newServer(t)
	away := errors.New("the API server is away")
	s.cfg.WaitReady = func(context.Context) error { return away }
	machine := agent.Node{Name: "s1", IPs: []string{"192.0.2.7"}, ExternalIPs: []string{"198.51.100.1"}}
	if _, err := New(s.cfg).Join(t.Context(), machine); !errors.Is(err, away) || !strings.Contains(err.Error(), "s1") {
		t.Errorf("without an API server: %v", err)
	}
	s.cfg.WaitReady = func(context.Context) error { return nil }
	n := New(s.cfg)
	facts, err := n.Join(t.Context(), machine)
	if err != nil || facts.APIServer != s.cfg.URL || facts.ClusterDomain != "c.local" || n.FlannelBackend() != "vxlan" ||
		s.cfg.Facts.APIServer != "" {
		t.Fatalf("%+v, %v", facts, err)
	}
	read := func(file string) []byte {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		return raw
	}
	dir := s.cfg.Dirs.AgentPKI()
	before := map[string][]byte{}
	for _, id := range []nodecerts.Identity{nodecerts.Kubelet("s1"), nodecerts.Agent("s1"), nodecerts.Serving("s1")} {
		raw := read(filepath.Join(dir, id.File+".crt"))
		before[id.File] = raw
		b, _ := pem.Decode(raw)
		if b == nil {
			t.Fatalf("%s holds no certificate", id.File)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil || c.Subject.CommonName != id.User || !slices.Equal(c.Subject.Organization, id.Groups) {
			t.Errorf("%s: %v, %v", id.File, c.Subject, err)
		}
		var ips []string
		for _, ip := range c.IPAddresses {
			ips = append(ips, ip.String())
		}
		if want := []string{"127.0.0.1", "192.0.2.7", "198.51.100.1"}; id.Serving != slices.Equal(ips, want) {
			t.Errorf("%s is for the addresses %v", id.File, ips)
		}
	}
	if !bytes.Equal(read(filepath.Join(dir, nodecerts.ServerCA+".crt")), s.cfg.PKI.CAPEM(pki.ServerCA)) {
		t.Error("the node trusts another server CA")
	}
	for _, f := range []string{s.cfg.Dirs.KubeletKubeconfig(), s.cfg.Dirs.AgentKubeconfig()} {
		if !strings.Contains(string(read(f)), s.cfg.URL) {
			t.Errorf("%s does not name the API server of this machine", f)
		}
	}
	if _, err := n.Join(t.Context(), machine); err != nil {
		t.Errorf("again: %v", err)
	}
	for file, was := range before {
		if !bytes.Equal(read(filepath.Join(dir, file+".crt")), was) {
			t.Errorf("%s was issued again", file)
		}
	}
}

// TestReserve: the name is taken when the node has joined, also from another machine, which is logged.
func TestReserve(t *testing.T) {
	for _, taken := range []bool{false, true} {
		s := newServer(t)
		if taken {
			other := s.cfg
			other.Dirs = layout.Dirs{Data: t.TempDir(), Run: t.TempDir()} // with another password
			if err := os.MkdirAll(other.Dirs.Agent(), 0o700); err != nil {
				t.Fatal(err)
			}
			n := New(other)
			n.joined <- agent.Node{Name: "s1"}
			await, stop := run(t, n.Reserve)
			await()
			stop()
		}
		n := New(s.cfg)
		await, _ := run(t, n.Reserve)
		if _, err := os.Stat(s.cfg.Dirs.NodePassword()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("before the node has joined: %v", err)
		}
		if _, err := n.Join(t.Context(), agent.Node{Name: "s1", IPs: []string{"192.0.2.7"}}); err != nil {
			t.Fatal(err)
		}
		await()
		if len(s.api.secrets) != 1 {
			t.Errorf("taken %v: %d Secrets", taken, len(s.api.secrets))
		}
		if warned := strings.Contains(s.logs.String(), "node=s1"); warned != taken {
			t.Errorf("taken %v: the log is %q", taken, s.logs)
		}
	}
}

// TestReserveRunsAgain: a run that failed does not lose the name with which the node has joined.
func TestReserveRunsAgain(t *testing.T) {
	s := newServer(t)
	n := New(s.cfg)
	n.joined <- agent.Node{Name: "s1"}
	for range 2 {
		await, stop := run(t, n.Reserve)
		await()
		stop()
	}
}

// TestMark: the Node gets the role of servers once.
func TestMark(t *testing.T) {
	for _, marked := range []bool{false, true} {
		s := newServer(t)
		if marked {
			s.api.labels = map[string]any{wellknown.ServerRole: "true"}
		}
		_, stop := run(t, New(s.cfg).Mark)
		<-s.api.changed // it has looked
		for !marked && s.api.count() == 0 {
			<-s.api.changed
		}
		stop()
		want := fmt.Sprintf(`{"metadata":{"labels":{%q:"true"}}}`, wellknown.ServerRole)
		if got := s.api.patches; marked && len(got) > 0 || !marked && !slices.Equal(got, []string{want}) {
			t.Errorf("marked %v: patched with %q", marked, got)
		}
	}
}
