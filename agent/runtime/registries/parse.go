package registries

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/umiak-io/umiak/internal/yamlfile"
)

// wildcard is the key for every registry, or host, without an entry of its own.
const wildcard = "*"

// Settings is the content of a registries.yaml.
type Settings struct {
	Mirrors map[string]Mirror // by registry, such as docker.io
	Configs map[string]Host   // by host, such as registry.example.com:5000
	// MirrorsOnly excludes every registry that has a mirror: images come from the mirror alone. It is the setting
	// disable-default-registry-endpoint.
	MirrorsOnly bool
}

// Secret reports whether the settings contain a password or a token.
func (s *Settings) Secret() bool {
	for _, h := range s.Configs {
		if h.Secret != "" {
			return true
		}
	}
	return false
}

// Unreadable returns an error that lists the TLS files that cannot be used now. Pulls read the files, so this does not
// invalidate the settings.
func (s *Settings) Unreadable() error {
	var errs []error
	for _, host := range slices.Sorted(maps.Keys(s.Configs)) {
		if _, err := s.Configs[host].TLS.load(); err != nil {
			errs = append(errs, fmt.Errorf("configs.%s.tls: %w", host, err))
		}
	}
	return errors.Join(errs...)
}

// Mirror describes where a registry's images are fetched from before the registry itself.
type Mirror struct {
	Endpoints []Endpoint
	Rewrites  []Rewrite // in the file's order; the first that matches is used
	// Only excludes the registry itself, whatever its mirrors answer (fallback: false).
	Only bool
}

// Endpoint is the URL of a mirror or registry.
type Endpoint struct {
	Scheme, Host, Path string
}

// String returns the endpoint's URL.
func (e Endpoint) String() string { return e.Scheme + "://" + e.Host + e.Path }

// Rewrite changes an image's repository for a mirror, for example ^library/(.*) to cache/$1.
type Rewrite struct {
	Pattern *regexp.Regexp
	By      string
}

// Host describes how to connect to one host.
type Host struct {
	User, Secret string // if only Secret is set, it is an identity token
	TLS          *TLS
}

// TLS names files, which are read at each pull.
type TLS struct {
	CAFile, CertFile, KeyFile string
	SkipVerify                bool
}

// maxSize bounds the size of the file in bytes.
const maxSize = 1 << 20

// Parse parses a registries.yaml. It reports all mistakes, each with the file's name, line and key.
func Parse(name string, text []byte) (*Settings, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, maxSize)
	}
	doc, err := yamlfile.Document(text)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", name, err)
	}
	p := &parser{name: name}
	s := &Settings{Mirrors: map[string]Mirror{}, Configs: map[string]Host{}}
	auths := map[string]Host{}
	if doc != nil {
		p.object(doc, "", map[string]func(*yaml.Node, string){
			"mirrors": func(n *yaml.Node, at string) {
				p.named(
					n, at, registryKey, func(key string, n *yaml.Node, at string) { s.Mirrors[key] = p.mirror(n, at) })
			},
			"configs": func(n *yaml.Node, at string) {
				p.named(n, at, hostKey, func(key string, n *yaml.Node, at string) { s.Configs[key] = p.host(n, at) })
			},
			// The older form of configs.HOST.auth, which k3s reads as well.
			"auths": func(n *yaml.Node, at string) {
				p.named(n, at, hostKey, func(key string, n *yaml.Node, at string) {
					user, secret := p.auth(n, at)
					auths[key] = Host{User: user, Secret: secret}
				})
			},
		})
		for key, a := range auths {
			if h := s.Configs[key]; h.Secret == "" {
				h.User, h.Secret = a.User, a.Secret
				s.Configs[key] = h
			}
		}
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return s, nil
}

// defaultKey is the name of the default entry in containerd's folder of hosts.toml files.
const defaultKey = "_default"

// keyForm matches a host with or without a port, as in an image's name.
var keyForm = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9._-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?$`)

// registryKey returns the registry for a key of mirrors, as it is named in images. Keys may also be URLs, or other
// names of Docker Hub.
func registryKey(key string) (string, error) {
	name, rest := cutKey(key)
	switch {
	case name == wildcard || name == defaultKey:
		return wildcard, nil
	case strings.Contains(name, wildcard):
		return "", fmt.Errorf("%q must be the whole key: it stands for all other registries", wildcard)
	case rest != "":
		return "", fmt.Errorf("is not a registry: settings apply to all of %s; use a rewrite for single repositories",
			name)
	case !keyForm.MatchString(name):
		return "", errors.New("is not a registry such as docker.io or registry.example.com:5000")
	}
	return canonical(name), nil
}

// hostKey returns the host for a key of configs.
func hostKey(key string) (string, error) {
	name, rest := cutKey(key)
	switch {
	case name == wildcard || name == defaultKey:
		return wildcard, nil
	case rest != "":
		return "", fmt.Errorf("is not a host: settings apply to all of %s", name)
	case !keyForm.MatchString(name):
		return "", errors.New("is not a host such as registry.example.com:5000")
	}
	return canonical(name), nil
}

// cutKey removes a scheme, and the /v1/ or /v2/ that tools append to a registry's host.
func cutKey(key string) (name, rest string) {
	port := ""
	for scheme, p := range map[string]string{"https://": ":443", "http://": ":80"} {
		if t, ok := strings.CutPrefix(key, scheme); ok {
			key, port = t, p
		}
	}
	name, rest, _ = strings.Cut(key, "/")
	if rest = strings.Trim(rest, "/"); rest == "v1" || rest == "v2" {
		rest = ""
	}
	return strings.TrimSuffix(name, port), rest
}

// canonical returns docker.io for each of Docker Hub's hosts, and other hosts unchanged.
func canonical(host string) string {
	switch strings.TrimSuffix(strings.ToLower(host), ":443") {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return hub
	}
	return host
}

const hub = "docker.io"

type parser struct {
	name string
	errs []error
}

func (p *parser) fail(n *yaml.Node, at, format string, a ...any) {
	if at == "" {
		at = "document"
	}
	p.errs = append(p.errs, fmt.Errorf("%s:%d: %s: %s", p.name, n.Line, at, fmt.Sprintf(format, a...)))
}

// each calls do for every entry of a mapping. An absent value counts as an empty mapping.
func (p *parser) each(n *yaml.Node, at string, do func(key string, n *yaml.Node, at string)) {
	n = resolve(n)
	if n.Tag == "!!null" {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.fail(n, at, "must be a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode || k.Value == "" {
			p.fail(k, at, "has a key that is not a name")
			continue
		}
		if seen[k.Value] {
			p.fail(k, join(at, k.Value), "is a duplicate key")
			continue
		}
		seen[k.Value] = true
		do(k.Value, v, join(at, k.Value))
	}
}

// named is each for a mapping whose keys are registries or hosts. Two keys for the same registry or host must have the
// same settings.
func (p *parser) named(n *yaml.Node, at string, name func(string) (string, error),
	do func(key string, n *yaml.Node, at string)) {
	type entry struct {
		key   string
		value *yaml.Node
	}
	seen := map[string]entry{}
	p.each(n, at, func(key string, n *yaml.Node, at string) {
		k, err := name(key)
		if err != nil {
			p.fail(n, at, "%v", err)
			return
		}
		before, twice := seen[k]
		switch {
		case !twice:
			seen[k] = entry{key, n}
			do(k, n, at)
		case !same(before.value, n):
			p.fail(n, at, "is the same as %s, which has other settings", before.key)
		}
	})
}

// same reports whether two values are equal.
func same(a, b *yaml.Node) bool {
	a, b = resolve(a), resolve(b)
	return a.Kind == b.Kind && a.Tag == b.Tag && a.Value == b.Value && slices.EqualFunc(a.Content, b.Content, same)
}

// object is each for a mapping with a fixed set of keys.
func (p *parser) object(n *yaml.Node, at string, keys map[string]func(*yaml.Node, string)) {
	p.each(n, at, func(key string, v *yaml.Node, sub string) {
		if f, ok := keys[key]; ok {
			f(v, sub)
			return
		}
		var valid []string
		for k := range keys {
			valid = append(valid, k)
		}
		slices.Sort(valid)
		p.fail(v, sub, "unknown key; valid keys: %s", strings.Join(valid, ", "))
	})
}

func (p *parser) mirror(n *yaml.Node, at string) (m Mirror) {
	p.object(n, at, map[string]func(*yaml.Node, string){
		"endpoint": func(n *yaml.Node, at string) {
			n = resolve(n)
			list := n.Content
			if n.Kind == yaml.ScalarNode && n.Tag != "!!null" {
				list = []*yaml.Node{n}
			} else if n.Kind == yaml.MappingNode {
				p.fail(n, at, "must be a list of URLs")
				return
			}
			for i, v := range list {
				sub := fmt.Sprintf("%s[%d]", at, i)
				text := p.text(v, sub)
				if text == "" {
					continue
				}
				e, err := parseEndpoint(text)
				if err != nil {
					p.fail(v, sub, "%v", err)
					continue
				}
				m.Endpoints = append(m.Endpoints, e)
			}
		},
		"fallback": func(n *yaml.Node, at string) {
			fallback := true
			if err := resolve(n).Decode(&fallback); err != nil {
				p.fail(n, at, "must be true or false")
			}
			m.Only = !fallback
		},
		"rewrite": func(n *yaml.Node, at string) {
			p.each(n, at, func(key string, v *yaml.Node, at string) {
				re, err := regexp.Compile(key)
				if err != nil {
					p.fail(v, at, "%v", err)
					return
				}
				m.Rewrites = append(m.Rewrites, Rewrite{re, p.text(v, at)})
			})
		},
	})
	return m
}

// auth returns the user and the secret of credentials. The user is empty for an identity token.
func (p *parser) auth(n *yaml.Node, at string) (user, secret string) {
	set := func(to *string) func(*yaml.Node, string) {
		return func(n *yaml.Node, at string) { *to = p.text(n, at) }
	}
	var password, auth, token string
	p.object(n, at, map[string]func(*yaml.Node, string){
		"username": set(&user), "password": set(&password), "auth": set(&auth), "identity_token": set(&token),
	})
	switch {
	case user != "":
		return user, password
	case token != "":
		return "", token
	case auth != "":
		// The message must not contain any part of the value.
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(auth))
		u, s, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
		if err != nil || !ok {
			p.fail(n, join(at, "auth"), "is not the base64 of USER:PASSWORD")
			return "", ""
		}
		return u, s
	case password != "":
		p.fail(n, join(at, "username"), "is missing: a password needs it")
	}
	return "", ""
}

func (p *parser) host(n *yaml.Node, at string) (h Host) {
	set := func(to *string) func(*yaml.Node, string) {
		return func(n *yaml.Node, at string) { *to = p.text(n, at) }
	}
	p.object(n, at, map[string]func(*yaml.Node, string){
		"auth": func(n *yaml.Node, at string) { h.User, h.Secret = p.auth(n, at) },
		"tls": func(n *yaml.Node, at string) {
			h.TLS = &TLS{}
			p.object(n, at, map[string]func(*yaml.Node, string){
				"ca_file": set(&h.TLS.CAFile), "cert_file": set(&h.TLS.CertFile), "key_file": set(&h.TLS.KeyFile),
				"insecure_skip_verify": func(n *yaml.Node, at string) {
					if err := resolve(n).Decode(&h.TLS.SkipVerify); err != nil {
						p.fail(n, at, "must be true or false")
					}
				},
			})
			if (h.TLS.CertFile == "") != (h.TLS.KeyFile == "") {
				p.fail(n, at, "needs both cert_file and key_file")
			}
		},
	})
	return h
}

// text returns a scalar's value.
func (p *parser) text(n *yaml.Node, at string) string {
	n = resolve(n)
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		p.fail(n, at, "must be a string")
		return ""
	}
	return n.Value
}

// resolve follows aliases.
func resolve(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n.Kind != yaml.AliasNode || n.Alias == nil {
			break
		}
		n = n.Alias
	}
	return n
}

func join(at, key string) string {
	if at == "" {
		return key
	}
	return at + "." + key
}

// parseEndpoint parses https://HOST[:PORT][/PATH]. Without a path the registry API is at /v2; with one, the API is at
// the path.
func parseEndpoint(text string) (Endpoint, error) {
	if !strings.Contains(text, "://") {
		host, _, _ := strings.Cut(text, "/")
		text = defaultScheme(host) + "://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		// url's message quotes the URL, which may contain a password.
		return Endpoint{}, errors.New("is not a URL")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return Endpoint{}, fmt.Errorf("%q is neither http nor https", u.Scheme)
	case u.Hostname() == "":
		return Endpoint{}, errors.New("has no host")
	case u.User != nil:
		return Endpoint{}, errors.New("must not contain credentials: put them into configs")
	case u.RawQuery != "" || u.Fragment != "":
		return Endpoint{}, errors.New("must end with the path")
	}
	e := Endpoint{Scheme: u.Scheme, Host: u.Host, Path: path.Clean("/" + u.Path)}
	if canonical(e.Host) == hub {
		e.Host = registryEndpoint(hub).Host // its other hosts serve web sites
	}
	if e.Path == "/" {
		e.Path = "/v2"
	}
	return e, nil
}
