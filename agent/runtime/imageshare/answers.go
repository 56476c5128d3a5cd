package imageshare

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const (
	// probeTimeout bounds the time for a registry to send any answer.
	probeTimeout = 2 * time.Second
	// probeLifetime is how long the result of a probe is used.
	probeLifetime = 30 * time.Second
)

// probes caches which registries answer.
type probes struct {
	mu  sync.Mutex
	all map[string]probe
}

type probe struct {
	until   time.Time
	answers bool
}

// answers reports whether one of the hosts of a pull answers at all, even with "unauthorized". Mirrors count: they are
// configured to define what an image is.
func (s *Share) answers(ctx context.Context, hosts []docker.RegistryHost) bool {
	key := probeKey(hosts)
	now := time.Now()
	s.probes.mu.Lock()
	for k, p := range s.probes.all {
		if now.After(p.until) {
			delete(s.probes.all, k)
		}
	}
	p, cached := s.probes.all[key]
	s.probes.mu.Unlock()
	if cached {
		return p.answers
	}
	p.answers = anyAnswers(ctx, hosts)
	if ctx.Err() != nil {
		return p.answers // the probe was cut short: do not cache it
	}
	p.until = time.Now().Add(probeLifetime)
	s.probes.mu.Lock()
	s.probes.all[key] = p
	s.probes.mu.Unlock()
	return p.answers
}

func probeKey(hosts []docker.RegistryHost) string {
	var names []string
	for _, h := range hosts {
		names = append(names, h.Scheme+"://"+h.Host+h.Path)
	}
	return strings.Join(names, " ")
}

// forget removes the cached result for hosts.
func (p *probes) forget(hosts []docker.RegistryHost) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, probeKey(hosts))
}

func anyAnswers(ctx context.Context, hosts []docker.RegistryHost) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	got := make(chan bool, len(hosts))
	for _, h := range hosts {
		go func() { got <- hostAnswers(ctx, h) }()
	}
	for range hosts {
		if <-got {
			return true
		}
	}
	return false
}

func hostAnswers(ctx context.Context, h docker.RegistryHost) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Scheme+"://"+h.Host+strings.TrimSuffix(h.Path, "/")+"/",
		nil)
	if err != nil {
		return false
	}
	r.Header.Set("User-Agent", "umiak")
	rt := http.DefaultTransport
	if h.Client != nil && h.Client.Transport != nil {
		rt = h.Client.Transport // does not follow redirects: any response counts
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}
