package imageshare

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestADigestIsNotEnough: a registry of a tenant's own that says yes to the digest of another tenant's private image,
// and holds nothing, does not get it from the neighbours.
func TestADigestIsNotEnough(t *testing.T) {
	l := newLab(t)
	srv, ag := l.add("srv", true), l.add("ag", false)
	body := layer(1)
	private := srv.store.image("registry.test/team/private:1", body)
	blob := digest.FromBytes(body)
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", private.String())
		w.Header().Set("Content-Length", "400")
	}))
	defer evil.Close()
	for what, r := range map[string]Registry{"a registry that says yes": registries{evil.URL},
		"one that does not answer": nobody(t)} {
		if _, got, err := ag.pull(t.Context(), r, "evil.example/x@"+private.String()); err == nil {
			t.Errorf("%s: the private layer is given, %d bytes", what, len(got))
		}
	}
	// Neither by asking the node's port.
	for _, path := range []string{"manifests/" + private.String(), "blobs/" + blob.String()} {
		for _, repo := range []string{"/v2/x/%s?ns=evil.example", "/v2/team/other/%s?ns=registry.test",
			"/v2/team/private/%s?ns=evil.example"} {
			for _, method := range []string{http.MethodHead, http.MethodGet} {
				at := fmt.Sprintf(repo, path)
				if resp, _ := l.get(ag, srv, method, at, ""); resp.StatusCode != http.StatusNotFound {
					t.Errorf("%s %s: %s", method, at, resp.Status)
				}
			}
		}
	}
	// What was pulled from the repository, and what an image of it refers to, is given.
	if _, got, err := ag.pull(t.Context(), nobody(t), "registry.test/team/private@"+private.String()); err != nil ||
		!bytes.Equal(got, body) {
		t.Errorf("of the repository: %v", err)
	}
	alone := srv.store.put(layer(2)) // of an image that is being pulled
	srv.store.pulled("registry.test", "a/b,team/private", alone)
	for repo, want := range map[string]int{
		"/v2/team/private/%s?ns=registry.test": 200, "/v2/a/b/%s?ns=registry.test": 200,
		"/v2/team/private/%s?ns=registry.test:5000": 200,
		"/v2/b/%s?ns=registry.test":                 404, "/v2/team/private/%s?ns=test": 404,
		"/v2/a/b/%s?ns=evil.example": 404,
	} {
		at := fmt.Sprintf(repo, "blobs/"+alone.String())
		if resp, _ := l.get(ag, srv, http.MethodHead, at, ""); resp.StatusCode != want {
			t.Errorf("%s: %s, not %d", at, resp.Status, want)
		}
	}
}

// TestManifestsWithoutEnd: indexes that refer to each other, and to what is not there, are looked through once.
func TestManifestsWithoutEnd(t *testing.T) {
	m := newMemory()
	self := m.put([]byte(`{"manifests":[{"digest":"` + sum + `"},{"digest":""},{"digest":"x"}]}`))
	top := m.put([]byte(`{"manifests":[{"digest":"` + self.String() + `"},{"digest":"` + self.String() + `"}]}`))
	m.images["registry.test/app:1"] = top
	h := newHandler(m, func() bool { return true }, &counters{})
	other := m.put([]byte("other"))
	for d, yes := range map[digest.Digest]bool{self: true, top: true, other: false} {
		if _, err := h.sizeIn(t.Context(), want{registry: "registry.test",
			repository: "app", kind: blobs, digest: d}); (err == nil) != yes {
			t.Errorf("%s: %v", d, err)
		}
	}
}

// TestSearchesAreBounded covers requests that make a node read manifests: of many at once a few do so, and others are
// told to come again; blobs with a label of their repository need no search.
func TestSearchesAreBounded(t *testing.T) {
	m := newMemory()
	m.image("registry.test/app:1", layer(1))
	labelled := m.put(layer(2))
	m.pulled("registry.test", "app", labelled)
	other := m.put([]byte("other"))
	h := newHandler(m, func() bool { return true }, &counters{})
	ask := func(d digest.Digest) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodHead, "/v2/app/blobs/"+d.String()+"?ns=registry.test", nil)
		h.ServeHTTP(w, r)
		return w.Code
	}
	for range maxSearches {
		leave, err := h.search(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer leave()
	}
	codes := make(chan int)
	for range 20 {
		go func() { codes <- ask(other) }()
	}
	if got := ask(labelled); got != http.StatusOK {
		t.Errorf("a blob of the repository, beside searches: %d", got)
	}
	for range 20 {
		if got := <-codes; got != http.StatusServiceUnavailable {
			t.Errorf("beside %d searches: %d", maxSearches, got)
		}
	}
	<-h.searches
	if got := ask(other); got != http.StatusNotFound {
		t.Errorf("with a free place: %d", got)
	}
	h.searches <- struct{}{}
}

// TestManifestsAreReadUpToABound covers an index that refers to more than a search reads.
func TestManifestsAreReadUpToABound(t *testing.T) {
	m := newMemory()
	var list []string
	pad := strings.Repeat(" ", 1<<20)
	for i := range 100 {
		list = append(list, fmt.Sprintf(`{"digest":%q}`,
			m.put(fmt.Appendf(nil, `{"layers":[{"digest":"sha256:%064d"}]}%s`, i, pad)).String()))
	}
	m.images["registry.test/app:1"] = m.put([]byte(`{"manifests":[` + strings.Join(list, ",") + `]}`))
	h := newHandler(m, func() bool { return true }, &counters{})
	before := m.read
	if ok, err := h.refers(t.Context(), want{registry: "registry.test", repository: "app", kind: blobs,
		digest: m.put([]byte("none"))}); ok || err != nil {
		t.Error(ok, err)
	}
	if read := m.read - before; read > maxManifestBytes>>20+2 {
		t.Errorf("%d manifests of 1 MiB are read", read)
	}
}
