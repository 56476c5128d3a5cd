package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// registry is a cluster whose nodes may all leave at once.
type registry struct {
	gone atomic.Bool
	left func(string)
}

func (r *registry) Admits(context.Context, string, []byte, bool) error {
	if r.gone.Load() {
		return errors.New("the node was deleted")
	}
	return nil
}
func (r *registry) OnLeave(f func(string))                                 { r.left = f }
func (r *registry) Foreign(context.Context, string, netip.Addr) error      { return nil }
func (r *registry) System(context.Context, string, netip.Addr) error       { return nil }
func (r *registry) Refuse(context.Context, string, netip.Addr, bool) error { return nil }
func (r *registry) RefuseName(string, string) error                        { return nil }

// TestGuard: when a node leaves, its requests are refused and those that run, as watches do, end; others' go on.
func TestGuard(t *testing.T) {
	nodes := &registry{}
	g := newGuard(nodes)
	running := make(chan struct{}, 1)
	h := g.before(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/watch" {
			running <- struct{}{}
			<-r.Context().Done()
		}
		w.WriteHeader(http.StatusOK)
	}))
	serve := func(path, user, group string) int {
		r := httptest.NewRequest(http.MethodGet, path, nil).WithContext(t.Context())
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: user,
			Organization: []string{group}}}}}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	ended := make(chan struct{})
	go func() { serve("/watch", "system:node:n1", "system:nodes"); close(ended) }()
	<-running
	nodes.gone.Store(true)
	nodes.left("n1")
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the watch of a deleted node goes on")
	}
	for _, c := range []struct {
		user, group string
		want        int
	}{
		{"system:node:n1", "system:nodes", http.StatusUnauthorized},
		{"umiak:agent:n1", "umiak:agents", http.StatusUnauthorized},
		{"system:node:n1", "people", http.StatusOK},
		{"umiak:admin", "system:masters", http.StatusOK},
	} {
		if got := serve("/get", c.user, c.group); got != c.want {
			t.Errorf("%s of %s: %d, want %d", c.user, c.group, got, c.want)
		}
	}
	if len(g.running) != 0 {
		t.Errorf("requests that have ended are kept: %v", g.running)
	}
}
