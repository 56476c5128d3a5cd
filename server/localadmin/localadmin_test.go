package localadmin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/apiservers"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/cluster"
	"github.com/umiak-io/umiak/server/joinapi"
	"github.com/umiak-io/umiak/server/pki"
)

// stopped returns the directories of a server that has run, with its authorities and one leaf.
func stopped(t *testing.T) layout.Dirs {
	t.Helper()
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	p, err := pki.Ensure(pki.Config{Dir: d.ServerPKI()})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apiserver", "admin"} {
		leaf := pki.Leaf{Name: name, CA: pki.ServerCA, CommonName: name, Server: true, CertFile: p.File(name + ".crt"),
			KeyFile: p.File(name + ".key")}
		if err := p.Add(leaf); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestRenewStopped: certificates of a stopped server are removed, authorities never, and an unknown name changes
// nothing.
func TestRenewStopped(t *testing.T) {
	d := stopped(t)
	before := names(t, d.ServerPKI())
	if _, err := Renew(t.Context(), d, []string{"apiserver", "nope"}, false); err == nil ||
		!strings.Contains(err.Error(), `there is no certificate "nope"; there are `) {
		t.Errorf("%v", err)
	}
	if got := names(t, d.ServerPKI()); !slices.Equal(got, before) {
		t.Errorf("after a mistake there are %q", got)
	}
	for _, c := range []struct {
		names   []string
		newKeys bool
		gone    []string
	}{
		{[]string{"admin"}, false, []string{"admin.crt"}},
		{nil, true, []string{"apiserver.crt", "apiserver.key"}}, // admin has no certificate any more
	} {
		out, err := Renew(t.Context(), d, c.names, c.newKeys)
		if err != nil || out.RenewResult != nil || len(out.AtNextStart) != 1 {
			t.Errorf("%+v, %v", out, err)
		}
		before = slices.DeleteFunc(before, func(n string) bool { return slices.Contains(c.gone, n) })
		if got := names(t, d.ServerPKI()); !slices.Equal(got, before) {
			t.Errorf("%+v: there are %q, want %q", c, got, before)
		}
	}
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := Renew(t.Context(), d, nil, true); !errors.Is(err, instance.ErrTaken) {
		t.Errorf("new keys of a server that runs: %v", err)
	}
}

// TestRotateStopped: the files of a stopped server are rotated, and errors name the next step.
func TestRotateStopped(t *testing.T) {
	d := stopped(t)
	out, running, err := RotateCA(t.Context(), d, cluster.RotateRequest{Names: []string{string(pki.ServerCA)}})
	if err != nil || running || len(out.UnderWay) != 1 {
		t.Fatalf("%+v, running %v, %v", out, running, err)
	}
	_, _, err = RotateCA(t.Context(), d, cluster.RotateRequest{Names: []string{string(pki.ServerCA)}, Finish: true})
	if !errors.Is(err, pki.ErrNoRestart) || !strings.Contains(err.Error(), "systemctl restart umiak") {
		t.Errorf("%v", err)
	}
}

func TestWithRemedy(t *testing.T) {
	for text, want := range map[string]string{
		pki.ErrNoRestart.Error():                        "systemctl restart umiak",
		pki.ErrUnderWay.Error():                         "rotate-ca --finish",
		pki.ErrUnderWay.Error() + "; X goes on with it": "",
		"other": "",
	} {
		got := withRemedy(errors.New(text)).Error()
		if !strings.HasPrefix(got, text) || want == "" && got != text || !strings.Contains(got, want) {
			t.Errorf("%q became %q", text, got)
		}
	}
	if withRemedy(nil) != nil {
		t.Error("no error became one")
	}
}

// jwt returns a token whose header names a key.
func jwt(kid string) []byte {
	return []byte(base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"alg":"RS256","kid":%q}`, kid)) + ".e30.x")
}

// TestClientsReady: an authority is not finished while a namespace or a Secret has the old one.
func TestClientsReady(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir()}
	key := []byte("the present key")
	sum := sha256.Sum256(key)
	kid := base64.RawURLEncoding.EncodeToString(sum[:])
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("new")}))
	old := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("old")}))
	if err := os.MkdirAll(d.ServerPKI(), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"server-ca.crt": ca + old, "service-account.pub": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY",
			Bytes: key})),
	} {
		if err := os.WriteFile(filepath.Join(d.ServerPKI(), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := func(ns, text string) runtime.Object {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "kube-root-ca.crt"},
			Data: map[string]string{"ca.crt": text}}
	}
	secret := func(name string, jwt []byte) runtime.Object {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name},
			Type: corev1.SecretTypeServiceAccountToken,
			Data: map[string][]byte{corev1.ServiceAccountTokenKey: jwt}}
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		names   []string
		want    string
	}{
		"all know": {[]runtime.Object{root("a", ca+old), secret("s", jwt(kid))}, nil, ""},
		"a namespace does not": {[]runtime.Object{root("a", ca), root("b", old)}, nil,
			"the namespaces b do not have the new CA yet"},
		"an old token": {[]runtime.Object{root("a", ca), secret("s", jwt(kid)), secret("t", jwt("other"))}, nil,
			"tokens of the old key, and whoever uses them would be locked out: a/t;"},
		"the other authority": {[]runtime.Object{root("b", old), secret("t", jwt("other"))}, []string{"client-ca"}, ""},
		"no token":            {[]runtime.Object{secret("t", []byte("x")), secret("u", nil)}, nil, ""},
	} {
		err := clientsReady(t.Context(), fake.NewClientset(c.objects...), d, c.names)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestJoinCommand names a server that the cluster has published.
func TestJoinCommand(t *testing.T) {
	d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	client := fake.NewClientset()
	tok := Tokens{Tokens: joinapi.Tokens{Client: client}, dirs: d}
	if line, err := tok.JoinCommand(t.Context(), token.Agent, token.Token{}); err == nil {
		t.Errorf("without a server: %s", line)
	}
	port, key, value := int32(6443), "", ""
	if k, v, ok := strings.Cut(apiservers.Selector, "="); ok {
		key, value = k, v
	}
	s := &discovery.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: "kubernetes",
			Labels: map[string]string{key: value}},
		Endpoints: []discovery.Endpoint{{Addresses: []string{"10.0.0.1"}}},
		Ports:     []discovery.EndpointPort{{Port: &port}},
	}
	if _, err := client.DiscoveryV1().EndpointSlices(s.Namespace).Create(t.Context(), s,
		metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[token.Kind]string{token.Agent: "umiak-agent --server https://10.0.0.1:6443 --token ",
		token.Server: "umiak server --server https://10.0.0.1:6443 --token "} {
		if line, err := tok.JoinCommand(t.Context(), kind, token.Token{}); err != nil ||
			!strings.HasPrefix(line, want) {
			t.Errorf("%s: %q, %v", kind, line, err)
		}
	}
}

// TestTokenFiles: the file of a token of the first start follows the token, on a server alone.
func TestTokenFiles(t *testing.T) {
	for _, server := range []bool{true, false} {
		d := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
		if server {
			if err := errors.Join(os.MkdirAll(d.Server(), 0o700),
				os.WriteFile(d.AgentToken(), []byte("old\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		tok := Tokens{Tokens: joinapi.Tokens{Client: fake.NewClientset()}, dirs: d}
		made, rec, err := tok.Create(t.Context(), joinapi.Spec{Kind: token.Agent})
		if err != nil {
			t.Fatal(err)
		}
		if _, remarks, err := tok.Rotate(t.Context(), rec.ID); err != nil || len(remarks) != 0 {
			t.Errorf("%v, %v", remarks, err)
		}
		if err := tok.Revoke(t.Context(), made.ID); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(d.AgentToken())
		if server && string(text) != "old\n" || !server && err == nil {
			t.Errorf("server %v: another token's file: %q, %v", server, text, err)
		}
	}
}

// saved is a datastore with one key.
type saved struct{}

func (saved) State(context.Context) (snapshot.State, error) {
	return snapshot.State{Backend: "etcd", Revision: 5}, nil
}

func (saved) Export(_ context.Context, _ int64, visit func(*mvccpb.KeyValue) error) error {
	return visit(&mvccpb.KeyValue{Key: []byte("/registry/a"), Value: []byte("v"), CreateRevision: 1, ModRevision: 5,
		Version: 1})
}

// TestResetToASnapshot: the state is replaced once, however often the server starts with these settings, and the
// server then starts as the only member of a new etcd.
func TestResetToASnapshot(t *testing.T) {
	from, d := stopped(t), stopped(t)
	entry, err := snapshot.Save{Dir: t.TempDir(), Name: "a", Node: "m1", Server: from.Server(), Source: saved{},
		Reason: "test", Now: time.Now()}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := Snapshots{Etc: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, nil))}
	config.Defaults(&s.Server, &s.Backup)
	s.Server.DataDir, s.Server.RunDir = d.Data, d.Run
	s.Server.Server, s.Server.ClusterReset, s.Server.ResetRestorePath = "https://first:6443", true, entry.Path
	ca := func() string {
		raw, err := os.ReadFile(filepath.Join(d.ServerPKI(), "server-ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	own := ca()
	for range 2 {
		cfg, err := s.ForReset(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if cfg.ClusterReset || !cfg.ClusterInit || cfg.Server != "" || cfg.ResetRestorePath != "" {
			t.Errorf("%+v", cfg)
		}
		if err := cfg.ValidateStart(); err != nil {
			t.Error(err)
		}
	}
	if ca() == own {
		t.Error("the state is the former one")
	}
	restored := func() (n int) {
		for _, name := range names(t, d.Data) {
			if strings.HasPrefix(name, "server.before-restore-") {
				n++
			}
		}
		return n
	}
	if restored() != 1 || !strings.Contains(log.String(), "is not restored again") {
		t.Errorf("%v\n%s", names(t, d.Data), log.String())
	}
	// The mark is in the folder that took the place of the old one. A restore by hand carries it on.
	path := s.Server.ResetRestorePath
	marked := func() string {
		raw, err := os.ReadFile(filepath.Join(d.Server(), "reset-restored"))
		if err != nil {
			return err.Error()
		}
		return string(raw)
	}
	if marked() != path {
		t.Errorf("the mark: %s", marked())
	}
	byHand := filepath.Join(t.TempDir(), "by-hand")
	if err := os.Link(path, byHand); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(t.Context(), byHand); err != nil || restored() != 2 || marked() != path {
		t.Errorf("by hand: %v, %v, the mark: %s", err, names(t, d.Data), marked())
	}
	if _, err := s.ForReset(t.Context()); err != nil || restored() != 2 {
		t.Errorf("after a restore by hand: %v, %v", err, names(t, d.Data))
	}
	// A start without the setting makes it mean something again.
	s.Server.ClusterReset, s.Server.ResetRestorePath = false, ""
	if cfg, err := s.ForReset(t.Context()); err != nil || cfg.Server == "" || cfg.ClusterInit {
		t.Errorf("%+v, %v", cfg, err)
	}
	s.Server.ClusterReset, s.Server.ResetRestorePath = true, path
	if _, err := s.ForReset(t.Context()); err != nil || restored() != 3 {
		t.Error(err, names(t, d.Data))
	}
	s.Server.ResetRestorePath = "/nope"
	if _, err := s.ForReset(t.Context()); err == nil || !strings.Contains(err.Error(), "cluster-reset-restore-path: ") {
		t.Error(err)
	}
}

// TestRestoreRefuses: neither the folder of a server that runs nor that of k3s is replaced.
func TestRestoreRefuses(t *testing.T) {
	d := stopped(t)
	entry, err := snapshot.Save{Dir: t.TempDir(), Name: "a", Node: "m1", Server: d.Server(), Source: saved{},
		Reason: "test", Now: time.Now()}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := Snapshots{Etc: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	config.Defaults(&s.Server, &s.Backup)
	restore := func(d layout.Dirs, want error) {
		t.Helper()
		s.Server.DataDir, s.Server.RunDir = d.Data, d.Run
		if _, err := s.Restore(t.Context(), entry.Path); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	restore(d, instance.ErrTaken)
	release()
	k3s := layout.Dirs{Data: t.TempDir(), Run: t.TempDir()}
	if err := errors.Join(os.MkdirAll(filepath.Join(k3s.Server(), "cred"), 0o700),
		os.WriteFile(filepath.Join(k3s.Server(), "cred", "passwd"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	restore(k3s, instance.ErrK3s)
	if _, err := server.SaveStopped(t.Context(), s.Server, s.Log, ""); !errors.Is(err, instance.ErrK3s) {
		t.Errorf("a snapshot of k3s: %v", err)
	}
	if got := names(t, k3s.Data); !slices.Equal(got, []string{"server"}) {
		t.Errorf("there are %q", got)
	}
}
