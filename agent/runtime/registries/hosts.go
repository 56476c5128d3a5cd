package registries

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/umiak-io/umiak/internal/httpproxy"
)

// Credentials are those of one pull, asked for by host; all empty where there are none.
type Credentials = func(host string) (user, secret string, err error)

const (
	mirrorCan   = docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityReferrers
	registryCan = mirrorCan | docker.HostCapabilityPush
)

// Hosts returns the hosts to try for a registry, in order: its mirrors, or those of "*", then itself if that is not ruled out. There is
// at least one; where none may be asked, it is one whose every answer is an error that says so.
func (s *Settings) Hosts(registry string, request Credentials) ([]docker.RegistryHost, error) {
	mirror, ok := s.Mirrors[registry]
	if !ok {
		mirror = s.Mirrors[wildcard]
	}
	own := registryEndpoint(registry)
	var out []docker.RegistryHost
	add := func(e Endpoint, rewrites []Rewrite, can docker.HostCapabilities) error {
		h, err := s.host(e, e.Host != own.Host, rewrites, request)
		if err != nil {
			return fmt.Errorf("registry %s: %w", e.Host, err)
		}
		h.Capabilities = can
		out = append(out, h)
		return nil
	}
	for _, e := range mirror.Endpoints {
		if err := add(e, mirror.Rewrites, mirrorCan); err != nil {
			return nil, err
		}
	}
	// The registry itself knows its images by their own names: no rewrites there.
	if len(mirror.Rewrites) == 0 && slices.Contains(mirror.Endpoints, own) {
		i := slices.Index(mirror.Endpoints, own)
		out[i].Capabilities = registryCan
		return out, nil
	}
	if mirror.Only || s.MirrorsOnly && len(mirror.Endpoints) > 0 {
		if len(out) == 0 {
			out = append(out, docker.RegistryHost{
				Client: &http.Client{Transport: forbidden(registry)}, Scheme: own.Scheme, Host: own.Host, Path: own.Path, Capabilities: mirrorCan,
			})
		}
		return out, nil
	}
	return out, add(own, nil, registryCan)
}

// ErrForbidden means that the settings keep a registry from being asked.
var ErrForbidden = errors.New("the registry settings forbid to ask it (fallback: false), and name no mirror")

// forbidden answers for a registry that may not be asked.
type forbidden string

// RoundTrip implements http.RoundTripper.
func (f forbidden) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("registry %s: %w", string(f), ErrForbidden)
}

// registryEndpoint is where a registry is when nothing else is said.
func registryEndpoint(registry string) Endpoint {
	if registry == hub {
		return Endpoint{"https", "registry-1.docker.io", "/v2"}
	}
	return Endpoint{defaultScheme(registry), registry, "/v2"}
}

// defaultScheme is https, but for this machine's own ports, where registries under test live.
func defaultScheme(host string) string {
	_, port, err := net.SplitHostPort(host)
	if err == nil && port != "443" && docker.IsLocalhost(host) {
		return "http"
	}
	return "https"
}

// config finds what the file says of a host.
func (s *Settings) config(host string) Host {
	names := []string{canonical(host)}
	for _, port := range []string{":443", ":80"} {
		if name, ok := strings.CutSuffix(host, port); ok {
			names = append(names, name)
		}
	}
	for _, n := range append(names, wildcard) {
		if h, ok := s.Configs[n]; ok {
			return h
		}
	}
	return Host{}
}

func (s *Settings) host(e Endpoint, isMirror bool, rewrites []Rewrite, request Credentials) (docker.RegistryHost, error) {
	cfg := s.config(e.Host)
	if isMirror && !mayHaveSecret(e) {
		request = nil
	}
	tlsConfig, err := cfg.TLS.load()
	if err != nil {
		return docker.RegistryHost{}, err
	}
	transport := docker.DefaultHTTPTransport(tlsConfig)
	transport.Proxy = httpproxy.Proxy()
	if e.Scheme == "http" && cfg.TLS != nil && defaultScheme(e.Host) == "http" {
		e.Scheme = "https" // this machine's own port, and the file says how to speak TLS to it
	}
	// Tokens are asked for with a client that leaves paths alone.
	auth := docker.NewDockerAuthorizer(
		docker.WithAuthClient(&http.Client{Transport: transport}),
		docker.WithAuthCreds(func(host string) (string, string, error) {
			return credentials(cfg, host == e.Host, isMirror, request, host)
		}))
	client := &http.Client{Transport: transport}
	if len(rewrites) > 0 {
		client.Transport = &rewriter{transport: transport, endpoint: e, rules: rewrites}
		auth = &authorizer{auth, rewrites}
	}
	return docker.RegistryHost{Client: client, Authorizer: auth, Scheme: e.Scheme, Host: e.Host, Path: e.Path}, nil
}

// mayHaveSecret says whether a pod's secret may be sent to a mirror: not in clear over the network.
func mayHaveSecret(mirror Endpoint) bool {
	return mirror.Scheme == "https" || docker.IsLocalhost(mirror.Host)
}

// credentials chooses between the node's and the pull's. A pod's secret is for the registry that its
// image names, so for a mirror the node's own come first.
func credentials(cfg Host, sameHost, isMirror bool, request Credentials, host string) (string, string, error) {
	node := cfg.Secret != "" && sameHost
	if node && isMirror {
		return cfg.User, cfg.Secret, nil
	}
	if request != nil {
		if u, s, err := request(host); err != nil || s != "" {
			return u, s, err
		}
	}
	if node {
		return cfg.User, cfg.Secret, nil
	}
	return "", "", nil
}

// load reads the files.
func (t *TLS) load() (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if t == nil {
		return out, nil
	}
	out.InsecureSkipVerify = t.SkipVerify
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		if out.RootCAs, err = x509.SystemCertPool(); err != nil {
			out.RootCAs = x509.NewCertPool()
		}
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read ca_file: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read cert_file and key_file: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// rewriter sends requests for a repository to the repository that the rules name.
type rewriter struct {
	transport http.RoundTripper
	endpoint  Endpoint
	rules     []Rewrite
}

var errBadRewrite = errors.New("a rewrite makes a repository name that is none")

func (r *rewriter) RoundTrip(req *http.Request) (*http.Response, error) {
	// A redirect's target is the server's choice, and has been rewritten already if it is about the same.
	if req.Response != nil || req.URL.Host != r.endpoint.Host {
		return r.transport.RoundTrip(req)
	}
	repository, rest, ok := splitPath(req.URL.Path, r.endpoint.Path)
	if !ok {
		return r.transport.RoundTrip(req)
	}
	to := rewrite(r.rules, repository)
	if to == repository {
		return r.transport.RoundTrip(req)
	}
	if to == "" || strings.HasPrefix(to, "/") || strings.HasSuffix(to, "/") || strings.Contains("/"+to+"/", "/../") || strings.ContainsAny(to, "?#%\x00 ") {
		return nil, fmt.Errorf("%w: %q for %q", errBadRewrite, to, repository)
	}
	c := req.Clone(req.Context())
	c.URL.Path, c.URL.RawPath = r.endpoint.Path+"/"+to+rest, ""
	resp, err := r.transport.RoundTrip(c)
	if resp != nil {
		resp.Request = req // callers compare it with what they sent
	}
	return resp, err
}

// splitPath takes the repository out of PREFIX/REPOSITORY/manifests/TAG and the like.
func splitPath(path, prefix string) (repository, rest string, ok bool) {
	p, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
	if !ok {
		return "", "", false
	}
	last := strings.LastIndexByte(p, '/')
	if last <= 0 {
		return "", "", false
	}
	kind := strings.LastIndexByte(p[:last], '/')
	if kind <= 0 {
		return "", "", false
	}
	switch p[kind:last] {
	case "/manifests", "/blobs", "/tags", "/referrers":
		return p[:kind], p[kind:], true
	}
	return "", "", false
}

// rewrite applies the first rule that matches.
func rewrite(rules []Rewrite, repository string) string {
	for _, r := range rules {
		if r.Pattern.MatchString(repository) {
			return r.Pattern.ReplaceAllString(repository, r.By)
		}
	}
	return repository
}

// authorizer asks for tokens for the repository that will be read, not for the one in the image's name.
type authorizer struct {
	docker.Authorizer
	rules []Rewrite
}

func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	scoped := context.Context(noScopes{ctx})
	for _, s := range docker.GetTokenScopes(ctx, nil) {
		// repository:NAME:ACTIONS
		if name, ok := strings.CutPrefix(s, "repository:"); ok {
			if i := strings.LastIndexByte(name, ':'); i > 0 {
				s = "repository:" + rewrite(a.rules, name[:i]) + name[i:]
			}
		}
		scoped = docker.WithScope(scoped, s)
	}
	return a.Authorizer.Authorize(scoped, req)
}

// noScopes hides the context's values, of which upstream's key for scopes is not exported, and keeps
// its end.
type noScopes struct{ context.Context }

func (noScopes) Value(any) any { return nil }
