package joinapi

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/metadata"
	metadatafake "k8s.io/client-go/metadata/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
)

// run runs an API until the test ends.
func run(t *testing.T, api *API, tokens Tokens) {
	t.Helper()
	ready, done := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var meta metadata.Interface = metadatafake.NewSimpleMetadataClient(metadatafake.NewTestScheme())
	go func() { done <- api.Serve(ctx, meta, tokens, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Fatal("the API is not ready after 20 s")
	}
}

// TestGuessesAreLimitedWhateverTheID: ten wrong passwords from an address, under any ids, are the last ones for a
// while; made tokens are let in.
func TestGuessesAreLimitedWhateverTheID(t *testing.T) {
	const password = "hunter2-hunter2"
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	for _, l := range []LongLived{{ID: ServerID, Kind: token.Server, Given: password},
		{ID: AgentID, Kind: token.Agent}} {
		l.File = filepath.Join(t.TempDir(), "token")
		if _, err := tokens.Ensure(t.Context(), l, quiet); err != nil {
			t.Fatal(err)
		}
	}
	made, _, err := tokens.Create(t.Context(), Spec{Kind: token.Agent})
	if err != nil {
		t.Fatal(err)
	}
	api := New(Config{Servers: &cluster{}, Own: func() string { return "" }, Log: quiet})
	run(t, api, tokens)
	ask := func(from, id, secret string) int {
		req := httptest.NewRequest(http.MethodPost, joinwire.NodePath, strings.NewReader("{}"))
		req.RemoteAddr = from + ":4711"
		req.SetBasicAuth(id, secret)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w.Code
	}
	want := func(what string, code, want int) {
		t.Helper()
		if code != want {
			t.Errorf("%s: %d, not %d", what, code, want)
		}
	}
	const stranger, other = "192.0.2.1", "192.0.2.2"
	want("the right password", ask(stranger, "", password), http.StatusBadRequest) // for the body
	for i := range triesPerMinute {
		want("a guess", ask(stranger, []string{"", ServerID}[i%2], "guess"), http.StatusUnauthorized)
	}
	for _, id := range []string{"", ServerID} {
		want("one more guess as "+id, ask(stranger, id, "guess"), http.StatusServiceUnavailable)
		want("the right password as "+id, ask(stranger, id, password), http.StatusServiceUnavailable)
		want("from another address", ask(other, id, password), http.StatusBadRequest)
	}
	want("a made token from the blocked address", ask(stranger, made.ID, made.Secret), http.StatusBadRequest)
	for range 2 * triesPerMinute {
		want("a random token cannot be guessed, and is not limited", ask(other, AgentID, "guess"),
			http.StatusUnauthorized)
	}
}

// noticed is a body that says when it is first read.
type noticed struct {
	io.ReadCloser
	reads chan struct{}
}

func (n *noticed) Read(p []byte) (int, error) {
	if n.reads != nil {
		n.reads <- struct{}{}
		n.reads = nil
	}
	return n.ReadCloser.Read(p)
}

// TestSlowBodiesHoldNobodyUp: requests with a good token whose bodies do not come take no turn from others.
func TestSlowBodiesHoldNobodyUp(t *testing.T) {
	tokens := Tokens{Client: fake.NewClientset(), CA: hash}
	tok, _, err := tokens.Create(t.Context(), Spec{Kind: token.Agent})
	if err != nil {
		t.Fatal(err)
	}
	api := New(Config{Servers: &cluster{}, Own: func() string { return "" }, Log: quiet})
	run(t, api, tokens)
	reads := make(chan struct{}, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &noticed{r.Body, reads}
		api.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	send := func(body io.Reader) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+joinwire.NodePath, body)
		if err != nil {
			return nil, err
		}
		req.SetBasicAuth(tok.ID, tok.Secret)
		return srv.Client().Do(req)
	}
	var slow []*io.PipeWriter
	for range 2 * maxConcurrent {
		r, w := io.Pipe()
		slow = append(slow, w)
		go func() {
			resp, err := send(r)
			if err == nil {
				_ = resp.Body.Close()
			}
		}()
	}
	for i := range slow {
		select {
		case <-reads:
		case <-time.After(20 * time.Second):
			t.Fatalf("%d of %d bodies are being read: the others wait for turns that nobody gives back", i, len(slow))
		}
	}
	resp, err := send(strings.NewReader(`{"name":""}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest { // its name is no name; it has had its turn
		t.Errorf("one whose body is there gets %s", resp.Status)
	}
	for _, w := range slow {
		_ = w.Close()
	}
}
