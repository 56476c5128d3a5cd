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
	// probeTime is how long a registry has to answer anything at all.
	probeTime = 2 * time.Second
	// remembered is how long it is taken for granted then.
	remembered = 30 * time.Second
)

// probes remembers which registries answer.
type probes struct {
	mu  sync.Mutex
	all map[string]probe
}

type probe struct {
	until   time.Time
	answers bool
}

// answers says whether one of the hosts at which a pull would ask says anything, be it that it wants to know who
// asks. Mirrors count: who has set them up means them to say what an image is.
func (s *Share) answers(ctx context.Context, hosts []docker.RegistryHost) bool {
	key := probeKey(hosts)
	now := time.Now()
	s.probes.mu.Lock()
	for k, p := range s.probes.all {
		if now.After(p.until) {
			delete(s.probes.all, k)
		}
	}
	p, known := s.probes.all[key]
	s.probes.mu.Unlock()
	if known {
		return p.answers
	}
	p.answers = anyAnswers(ctx, hosts)
	if ctx.Err() != nil {
		return p.answers // it was not given its time
	}
	p.until = time.Now().Add(remembered)
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

// forget has the hosts asked again.
func (p *probes) forget(hosts []docker.RegistryHost) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, probeKey(hosts))
}

func anyAnswers(ctx context.Context, hosts []docker.RegistryHost) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
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
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Scheme+"://"+h.Host+strings.TrimSuffix(h.Path, "/")+"/", nil)
	if err != nil {
		return false
	}
	r.Header.Set("User-Agent", "umiak")
	rt := http.DefaultTransport
	if h.Client != nil && h.Client.Transport != nil {
		rt = h.Client.Transport // no redirects are followed: an answer is an answer
	}
	resp, err := rt.RoundTrip(r)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}
