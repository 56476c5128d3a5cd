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

// Credentials returns the credentials of one pull for a host; both strings are empty if there are none.
type Credentials = func(host string) (user, secret string, err error)

const (
	mirrorCan   = docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityReferrers
	registryCan = mirrorCan | docker.HostCapabilityPush
)

// Hosts returns the hosts to try for a registry, in order: its mirrors, or those of "*", then the registry itself
// unless the settings exclude it. It returns at least one host; if no host may be used, the host's client returns
// errForbidden for every request.
func (s *Settings) Hosts(registry string, request Credentials) ([]docker.RegistryHost, error) {
	mirror, ok := s.Mirrors[registry]
	if !ok {
		mirror = s.Mirrors[wildcard]
	}
	self := registryEndpoint(registry)
	var out []docker.RegistryHost
	add := func(e Endpoint, rewrites []Rewrite, can docker.HostCapabilities) error {
		h, err := s.host(e, e.Host != self.Host, rewrites, request)
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
	// Rewrites do not apply to the registry itself.
	if len(mirror.Rewrites) == 0 && slices.Contains(mirror.Endpoints, self) {
		i := slices.Index(mirror.Endpoints, self)
		out[i].Capabilities = registryCan
		return out, nil
	}
	if mirror.Only || s.MirrorsOnly && len(mirror.Endpoints) > 0 {
		if len(out) == 0 {
			out = append(out, docker.RegistryHost{
				Client: &http.Client{Transport: forbidden(registry)}, Scheme: self.Scheme, Host: self.Host,
				Path: self.Path, Capabilities: mirrorCan,
			})
		}
		return out, nil
	}
	err := add(self, nil, registryCan)
	return out, err
}

// errForbidden means that the settings exclude the registry and name no mirror for it.
var errForbidden = errors.New("the registry settings exclude the registry (fallback: false) and name no mirror")

// forbidden is the transport for a registry that the settings exclude.
type forbidden string

// RoundTrip implements http.RoundTripper.
func (f forbidden) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("registry %s: %w", string(f), errForbidden)
}

// registryEndpoint returns the default endpoint of a registry.
func registryEndpoint(registry string) Endpoint {
	if registry == hub {
		return Endpoint{"https", "registry-1.docker.io", "/v2"}
	}
	return Endpoint{defaultScheme(registry), registry, "/v2"}
}

// defaultScheme is http for ports of this machine other than 443, where test registries listen, and https otherwise.
func defaultScheme(host string) string {
	_, port, err := net.SplitHostPort(host)
	if err == nil && port != "443" && docker.IsLocalhost(host) {
		return "http"
	}
	return "https"
}

// config returns the settings for a host.
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

func (s *Settings) host(e Endpoint, isMirror bool, rewrites []Rewrite,
	request Credentials) (docker.RegistryHost, error) {
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
		e.Scheme = "https" // a local port with TLS settings
	}
	// Token requests use a client without rewrites.
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

// mayHaveSecret reports whether a pod's secret may be sent to a mirror: not unencrypted over the network.
func mayHaveSecret(mirror Endpoint) bool {
	return mirror.Scheme == "https" || docker.IsLocalhost(mirror.Host)
}

// credentials selects the node's credentials or the pull's. A pod's secret is for the registry in the image's name, so
// for a mirror the node's credentials take precedence.
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

// load reads the files. A nil TLS gives the default configuration.
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
			return nil, fmt.Errorf("read ca_file: no certificate in %s", t.CAFile)
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

// rewriter changes the repository in requests according to the rules.
type rewriter struct {
	transport http.RoundTripper
	endpoint  Endpoint
	rules     []Rewrite
}

var errBadRewrite = errors.New("a rewrite gives an invalid repository name")

func (r *rewriter) RoundTrip(req *http.Request) (*http.Response, error) {
	// Leave redirects alone: the server chose the target, and the request was rewritten before.
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
	if to == "" || strings.HasPrefix(to, "/") || strings.HasSuffix(to, "/") || strings.Contains("/"+to+"/", "/../") ||
		strings.ContainsAny(to, "?#%\x00 ") {
		return nil, fmt.Errorf("%w: %q for %q", errBadRewrite, to, repository)
	}
	c := req.Clone(req.Context())
	c.URL.Path, c.URL.RawPath = r.endpoint.Path+"/"+to+rest, ""
	resp, err := r.transport.RoundTrip(c)
	if resp != nil {
		resp.Request = req // callers compare it with their request
	}
	return resp, err
}

// splitPath splits a path such as PREFIX/REPOSITORY/manifests/TAG.
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

// rewrite applies the first matching rule.
func rewrite(rules []Rewrite, repository string) string {
	for _, r := range rules {
		if r.Pattern.MatchString(repository) {
			return r.Pattern.ReplaceAllString(repository, r.By)
		}
	}
	return repository
}

// authorizer requests tokens for the rewritten repository instead of the one in the image's name.
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

// noScopes hides the values of a context, because upstream's key for scopes is not exported. It keeps the context's
// cancellation.
type noScopes struct{ context.Context }

func (noScopes) Value(any) any { return nil }
