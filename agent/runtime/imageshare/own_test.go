package imageshare

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imports are what was imported on a node.
type imports map[string]ocispec.Descriptor

func (i imports) Imported(_ context.Context, name string) (ocispec.Descriptor, bool) {
	d, ok := i[name]
	return d, ok
}

func imported(text string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(text),
		Size: int64(len(text))}
}

// resolve says what an image's name stands for, as a pull with policy Always asks.
func (n *node) resolve(t *testing.T, r Registry, ref string) digest.Digest {
	t.Helper()
	n.cfg.Registry = r
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: func(h string) ([]docker.RegistryHost,
		error) {
		return n.Hosts(h, nil)
	}})
	_, d, err := resolver.Resolve(t.Context(), ref)
	if err != nil {
		t.Logf("%s: %v", ref, err)
	}
	return d.Digest
}

func TestWhatWasImportedHere(t *testing.T) {
	mine := imported("mine")
	own := imports{app + ":1": mine, app + "@" + mine.Digest.String(): mine}
	t.Run("alone", func(t *testing.T) {
		n := newLab(t).add("one", true)
		n.cfg.Own = own
		none := nobody(t)
		for _, ref := range []string{app + ":1", app + "@" + mine.Digest.String()} {
			if got := n.resolve(t, none, ref); got != mine.Digest {
				t.Errorf("%s is %s", ref, got)
			}
		}
		if got := n.resolve(t, none, app+":2"); got != "" {
			t.Errorf("what was not imported is %s", got)
		}
	})
	t.Run("a registry that answers is the one to say", func(t *testing.T) {
		n := newLab(t).add("one", true)
		n.cfg.Own = own
		theirs := newMemory()
		newer := theirs.image(app+":1", layer(2))
		h := newHandler(theirs, func() bool { return true }, &counters{})
		var status atomic.Int32
		reg := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s := status.Load(); s != 0 && r.URL.Path != "/v2/" {
				w.WriteHeader(int(s))
				return
			}
			r.URL.RawQuery = "ns=registry.test"
			h.ServeHTTP(w, r)
		}))
		defer reg.Close()
		if got := n.resolve(t, registries{reg.URL}, app+":1"); got != newer {
			t.Errorf("got %s", got)
		}
		for _, s := range []int32{http.StatusNotFound, http.StatusForbidden} {
			status.Store(s)
			if got := n.resolve(t, registries{reg.URL}, app+":1"); got != "" {
				t.Errorf("it says %d, and the image is %s", s, got)
			}
		}
		// It has answered a moment ago, and is gone now.
		reg.Close()
		if got := n.resolve(t, registries{reg.URL}, app+":1"); got != mine.Digest {
			t.Errorf("the registry is gone, and the image is %s", got)
		}
	})
	t.Run("a silent registry", func(t *testing.T) {
		n := newLab(t).add("one", true)
		n.cfg.Own = own
		done := make(chan struct{})
		reg := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-done:
			case <-r.Context().Done():
			}
		}))
		defer reg.Close()
		defer close(done)
		if got := n.resolve(t, registries{reg.URL}, app+":1"); got != mine.Digest {
			t.Errorf("got %s", got)
		}
	})
	t.Run("servers before an agent's own", func(t *testing.T) {
		l := newLab(t)
		srv, ag := l.add("srv", true), l.add("ag", false)
		theirs := srv.store.image(app+":1", layer(1))
		ag.cfg.Own, srv.cfg.Own = own, imports{app + ":1": imported("the server's own")}
		none := nobody(t)
		if got := ag.resolve(t, none, app+":1"); got != theirs {
			t.Errorf("the agent takes %s", got)
		}
		if got := srv.resolve(t, none, app+":1"); got != imported("the server's own").Digest {
			t.Errorf("the server takes %s", got)
		}
		srv.end()
		if got := ag.resolve(t, none, app+":1"); got != mine.Digest {
			t.Errorf("without the server, the agent takes %s", got)
		}
	})
}
