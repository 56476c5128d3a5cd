package registries

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

var update = flag.Bool("update", false, "write the golden files again (the test fails while this is on)")

// The golden files: input, a line of dashes, and what is made of it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(b), "----\n")
			got := dump(in)
			if *update {
				if err := os.WriteFile(file, []byte(in+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Fatal("written again")
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// dump says where images are looked for, with which credentials, under which name.
func dump(in string) string {
	s, err := Parse("registries.yaml", []byte(in))
	if err != nil {
		return err.Error() + "\n"
	}
	var out strings.Builder
	names := []string{"docker.io", "registry.k8s.io", "localhost:5000", "private.example:8443"}
	for n := range s.Mirrors {
		if n != wildcard && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names[4:])
	pull := func(host string) (string, string, error) { return "pod", "secret of the pod", nil }
	for _, n := range names {
		fmt.Fprintf(&out, "%s\n", n)
		hosts, err := s.Hosts(n, pull)
		if err != nil {
			fmt.Fprintf(&out, "  %v\n", err)
			continue
		}
		for _, h := range hosts {
			if f, ok := h.Client.Transport.(forbidden); ok {
				_, err := f.RoundTrip(nil)
				fmt.Fprintf(&out, "  %v\n", err)
				continue
			}
			isMirror := h.Host != registryEndpoint(n).Host
			cfg := s.config(h.Host)
			ask := pull
			if isMirror && !mayHaveSecret(Endpoint{Scheme: h.Scheme, Host: h.Host}) {
				ask = nil
			}
			u, p, _ := credentials(cfg, true, isMirror, ask, h.Host)
			fmt.Fprintf(&out, "  %s://%s%s as %s/%s", h.Scheme, h.Host, h.Path, u, p)
			if cfg.TLS != nil {
				fmt.Fprintf(&out, " tls %+v", *cfg.TLS)
			}
			if r, ok := h.Client.Transport.(*rewriter); ok {
				fmt.Fprintf(&out, " library/nginx is %s", rewrite(r.rules, "library/nginx"))
			}
			if h.Capabilities.Has(docker.HostCapabilityPush) {
				fmt.Fprint(&out, " (the registry itself)")
			}
			fmt.Fprintln(&out)
		}
	}
	return out.String()
}

// A registry with tokens, as Docker Hub and Harbor have them: the token that is asked for must be for
// the repository that is read. It redirects blobs to another path of the same host.
type tokenRegistry struct {
	inner http.Handler
	host  string

	mu     sync.Mutex
	scopes []string
}

func (r *tokenRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch {
	case req.URL.Path == "/token":
		r.mu.Lock()
		r.scopes = append(r.scopes, req.URL.Query()["scope"]...)
		r.mu.Unlock()
		if u, p, _ := req.BasicAuth(); u != "reader" || p != "s3cret" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token": "t", "expires_in": 60}`)
	case strings.HasPrefix(req.URL.Path, "/storage/"):
		req.URL.Path = "/v2/cache/box/blobs/" + strings.TrimPrefix(req.URL.Path, "/storage/")
		r.inner.ServeHTTP(w, req)
	case req.Header.Get("Authorization") != "Bearer t":
		repository, _, _ := splitPath(req.URL.Path, "/v2")
		w.Header().Set("WWW-Authenticate",
			fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:%s:pull"`, r.host, repository))
		http.Error(w, "who are you", http.StatusUnauthorized)
	case strings.Contains(req.URL.Path, "/blobs/"):
		http.Redirect(w, req, "/storage/"+filepath.Base(req.URL.Path), http.StatusTemporaryRedirect)
	default:
		r.inner.ServeHTTP(w, req)
	}
}

func TestRewritesWithTokensAndRedirects(t *testing.T) {
	inner := registry.New(registry.Logger(noLog()))
	h := &tokenRegistry{inner: inner}
	srv := httptest.NewServer(h)
	defer srv.Close()
	h.host = strings.TrimPrefix(srv.URL, "http://")

	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}`)
	digest := "sha256:" + sum(config)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[]}`, digest, len(config))
	do := func(method, path, mediaType, body string) {
		t.Helper()
		req := httptest.NewRequest(method, path, strings.NewReader(body))
		req.Header.Set("Content-Type", mediaType)
		w := httptest.NewRecorder()
		inner.ServeHTTP(w, req)
		if w.Code >= 300 {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
	do("POST", "/v2/cache/box/blobs/uploads/?digest="+digest, "application/octet-stream", string(config))
	do("PUT", "/v2/cache/box/manifests/1", "application/vnd.oci.image.manifest.v1+json", manifest)

	s, err := Parse("test", []byte(fmt.Sprintf(`
mirrors:
  docker.io:
    endpoint: [%q]
    rewrite:
      "^library/(.*)$": "cache/$1"
      "(.*)": "not/this/$1"
configs:
  %q: {auth: {username: reader, password: s3cret}}`, srv.URL, h.host)))
	if err != nil {
		t.Fatal(err)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(r string) ([]docker.RegistryHost,
		error) {
		return s.Hosts(r, nil)
	}})
	name, desc, err := resolver.Resolve(t.Context(), "docker.io/library/box:1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := resolver.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(want string) {
		t.Helper()
		r, err := f.Fetch(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if b, err := io.ReadAll(r); err != nil || string(b) != want {
			t.Fatalf("got %q, %v", b, err)
		}
	}
	fetch(manifest)
	desc.MediaType, desc.Size = "application/vnd.oci.image.config.v1+json", int64(len(config))
	desc.Digest = desc.Digest.Algorithm().FromBytes(config)
	fetch(string(config))
	for _, s := range h.scopes {
		if s != "repository:cache/box:pull" {
			t.Errorf("asked for a token for %s", s)
		}
	}
	if len(h.scopes) == 0 {
		t.Error("no token was asked for")
	}
}

func TestBadRewriteIsRefused(t *testing.T) {
	s, err := Parse("test", []byte(`{mirrors: {docker.io: {endpoint: ["http://127.0.0.1:1"], rewrite: {"^library/(.*)": "../../$1"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := s.Hosts("docker.io", nil)
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:1/v2/library/x/manifests/1",
		nil)
	if _, err := hosts[0].Client.Transport.RoundTrip(req); !errors.Is(err, errBadRewrite) {
		t.Fatalf("got %v", err)
	}
}

func TestFollowsTheFile(t *testing.T) {
	// Neither the folder nor the one above it exists at first.
	path := filepath.Join(t.TempDir(), "etc", "umiak", "registries.yaml")
	r := New(Config{File: path, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	<-ready
	first := func() string {
		h, err := r.Hosts("docker.io", nil)
		if err != nil {
			return err.Error()
		}
		return h[0].Host
	}
	wait := func(want string) {
		t.Helper()
		eventually.Nil(t, want, func() error {
			if got := first(); !strings.Contains(got, want) {
				return errors.New("got " + got)
			}
			return nil
		})
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wait("registry-1.docker.io")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	write(`{mirrors: {docker.io: {endpoint: ["https://one.example"]}}}`)
	wait("one.example")
	write(`{mirrors: {docker.io: {endpoint: ["https://two.example"]}}}`)
	wait("two.example")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	wait("registry-1.docker.io")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStatusSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(path, []byte("mirrors: {docker.io: {endpoint: {}}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := New(Config{File: path, Log: slog.New(slog.DiscardHandler)})
	for _, c := range []struct{ text, state, detail string }{
		{"mirrors: {docker.io: {endpiont: []}}", "no image can be pulled", path +
			":1: mirrors.docker.io.endpiont: unknown key"},
		{"mirrors: {quay.io: {endpoint: [a]}}", "in use", "mirrors for 1 registries"},
		{"mirrors: {quay.io/x: {}}", "the settings before it stay in use", "is not a registry"},
		{"configs: {a: {tls: {ca_file: " + path + ".pem}}}", "cannot be used now", "no such file"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		r.load()
		got := r.Section(t.Context()).Rows
		if len(got) != 1 || !strings.Contains(got[0].State, c.state) || !strings.Contains(got[0].Detail, c.detail) {
			t.Errorf("%s: %+v", c.text, got)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r.load(); len(r.Section(t.Context()).Rows) != 0 {
		t.Errorf("without a file: %+v", r.Section(t.Context()))
	}
}

func TestMirrorsOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(path, []byte(`mirrors: {docker.io: {endpoint: ["https://mirror.example"]}}`),
		0o600); err != nil {
		t.Fatal(err)
	}
	r := New(Config{File: path, MirrorsOnly: true, Log: slog.New(slog.DiscardHandler)})
	for registry, want := range map[string]string{"docker.io": "mirror.example", "quay.io": "quay.io"} {
		hosts, err := r.Hosts(registry, nil)
		if err != nil || len(hosts) != 1 || hosts[0].Host != want {
			t.Errorf("%s: %v, %v", registry, hosts, err)
		}
	}
}

func TestABrokenFileAtStartFailsPullsOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "registries.yaml")
	if err := os.WriteFile(path, []byte("mirrors:\n  docker.io:\n    endpiont: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{File: path, Log: slog.New(slog.DiscardHandler)}).Hosts("docker.io", nil)
	if err == nil || !strings.Contains(err.Error(), path+":3: mirrors.docker.io.endpiont: unknown key") {
		t.Fatalf("got %v", err)
	}
}

func TestNoSecretInErrors(t *testing.T) {
	for _, in := range []string{
		"configs: {h: {auth: {auth: 'hunter2'}}}",
		"mirrors: {h: {endpoint: ['https://user:hunter2@host']}}",
		"mirrors: {h: {endpoint: ['https://user:hunter2@ho st/%zz']}}",
	} {
		if _, err := Parse("f", []byte(in)); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		f.Add(string(b))
	}
	f.Add("mirrors: &a {docker.io: *a}")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := Parse("f", []byte(in))
		if err != nil {
			return
		}
		for _, r := range []string{"docker.io", "localhost:5000", ""} {
			_, _ = s.Hosts(r, nil)
		}
	})
}

func FuzzSplitPath(f *testing.F) {
	f.Add("/v2/library/nginx/manifests/latest", "/v2")
	f.Add("/v2/a/blobs/b/blobs/sha256:0", "/v2/proxy")
	f.Fuzz(func(t *testing.T, path, prefix string) {
		if repository, rest, ok := splitPath(path, prefix); ok {
			if strings.TrimSuffix(prefix, "/")+"/"+repository+rest != path || repository == "" {
				t.Fatalf("%q of %q under %q", repository, path, prefix)
			}
		}
	})
}

func sum(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// noLog is a log that nobody reads.
func noLog() *log.Logger { return log.New(io.Discard, "", 0) }
