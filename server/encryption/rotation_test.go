package encryption

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/rest"

	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/server/cluster/kv"
)

// openStore returns a function that connects to an empty datastore, which serves until the test ends.
func openStore(t *testing.T) func(context.Context) (*clientv3.Client, error) {
	t.Helper()
	dir := t.TempDir()
	st, err := datastore.Open(t.Context(), datastore.Config{Dir: dir, Socket: filepath.Join(dir, "s"),
		VolatileSocket: filepath.Join(dir, "v"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- st.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context) (*clientv3.Client, error) { return datastore.Client(ctx, st) }
}

// fakeAPI is an API server with an encryption config and stored Secrets.
type fakeAPI struct {
	t       *testing.T
	file    string // its encryption config, which it uses at once
	store   func(context.Context) (*clientv3.Client, error)
	secrets []string
	url     string

	mu       sync.Mutex
	failing  bool   // it answers nothing
	written  int    // requests that wrote a Secret
	onUpdate func() // called before the first of them
}

func newFakeAPI(t *testing.T, secrets ...string) *fakeAPI {
	t.Helper()
	a := &fakeAPI{t: t, file: filepath.Join(t.TempDir(), "encryption-config.yaml"), store: openStore(t),
		secrets: secrets}
	k, err := newKey("key1", "secretbox")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&config{resources: []string{"secrets"}, keys: []secretKey{k}, identity: true}).write(a.file); err != nil {
		t.Fatal(err)
	}
	for _, s := range secrets {
		a.put(s)
	}
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

// put stores a Secret with the key that writes.
func (a *fakeAPI) put(name string) {
	c, _, err := load(a.file)
	if err != nil {
		a.t.Error(err)
		return
	}
	client, err := a.store(context.Background())
	if err != nil {
		a.t.Error(err)
		return
	}
	defer client.Close()
	key := "/registry/secrets/default/" + name
	resp, err := client.Get(context.Background(), key)
	if err != nil {
		a.t.Error(err)
		return
	}
	var revision int64
	if len(resp.Kvs) > 0 {
		revision = resp.Kvs[0].ModRevision
	}
	value := fmt.Sprintf("k8s:enc:%s:v1:%s:xxxx", c.keys[0].Cipher, c.keys[0].Name)
	if err := kv.PutIf(context.Background(), client, key, value, revision); err != nil {
		a.t.Error(err)
	}
}

func (a *fakeAPI) fail(yes bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failing = yes
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	object := func(name string) map[string]any {
		return map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
			"metadata": map[string]any{"namespace": "default", "name": name}}
	}
	answer := func(v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	name, one := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/default/secrets/")
	switch {
	case a.failing:
		http.Error(w, "failing", http.StatusInternalServerError)
	case r.URL.Path == "/metrics":
		raw, err := os.ReadFile(a.file)
		if err != nil {
			a.t.Error(err)
		}
		fmt.Fprintf(w, "%sapiserver_id_hash=\"sha256:a\",hash=\"sha256:%x\"} 1\n", metric, sha256.Sum256(raw))
	case strings.HasSuffix(r.URL.Path, "/endpointslices"):
		answer(map[string]any{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": []any{}})
	case r.URL.Path == "/api/v1/secrets":
		var items []any
		for _, s := range a.secrets {
			items = append(items, object(s))
		}
		if !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadataList") {
			a.t.Error("contents are listed, which a tenant makes as large as the API lets it")
		}
		answer(map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "items": items})
	case one && r.Method == http.MethodPatch:
		if a.written == 0 && a.onUpdate != nil {
			a.onUpdate()
		}
		a.written++
		a.put(name)
		answer(object(name))
	default:
		http.NotFound(w, r)
	}
}

// rotation returns a server's part in rotations.
func (a *fakeAPI) rotation() *Rotation {
	return New(Config{Server: "one", File: a.file, Datastore: a.store,
		REST: func() (*rest.Config, error) { return &rest.Config{Host: a.url}, nil },
		Log:  slog.New(slog.DiscardHandler),
		Share: func(_ context.Context, raw []byte) error {
			_, err := Adopt(a.file, raw)
			return err
		}})
}

// run runs a rotation's part until the function that it returns is called, or the test ends.
func (a *fakeAPI) run(r *Rotation) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, func() {}) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
	})
	a.t.Cleanup(stop)
	return stop
}

// follow returns all progress after p until one that until accepts.
func follow(t *testing.T, r *Rotation, p Progress, until func(Progress) bool) (steps []string, last Progress) {
	t.Helper()
	for {
		steps = append(steps, p.Step)
		if until(p) {
			return steps, p
		}
		var err error
		if p, err = r.Follow(t.Context(), FollowRequest{After: p.Revision}); err != nil {
			t.Fatalf("after %q: %v", steps, err)
		}
	}
}

func isDone(p Progress) bool { return p.Done }

// keys returns the keys in the file, the one that writes first.
func (a *fakeAPI) keys() string {
	s, err := FileStatus(a.file)
	if err != nil {
		a.t.Fatal(err)
	}
	var out []string
	for _, k := range s.Read {
		out = append(out, k.String())
	}
	return strings.Join(out, ", ")
}

func TestRotation(t *testing.T) {
	a := newFakeAPI(t, "x", "y", "z")
	r := a.rotation()
	a.run(r)
	if _, err := r.Begin(t.Context(), BeginRequest{Cipher: "rot13"}); err == nil ||
		!strings.Contains(err.Error(), "--key-type") {
		t.Errorf("an unknown type: %v", err)
	}
	for _, c := range []struct{ cipher, want string }{{"aesgcm", "aesgcm key2"}, {"", "aesgcm key3"}} {
		p, err := r.Begin(t.Context(), BeginRequest{Cipher: c.cipher})
		if err != nil {
			t.Fatal(err)
		}
		steps, last := follow(t, r, p, isDone)
		for _, want := range []string{c.want + " was made", c.want + " is written with", "secrets: 3 of 3 rewritten",
			"the old key is gone"} {
			if !strings.Contains(strings.Join(steps, "\n"), want) {
				t.Errorf("no step %q in %q", want, steps)
			}
		}
		if last.Server != "one" || last.Key.String() != c.want || a.keys() != c.want {
			t.Errorf("in the end: %+v, keys %s", last, a.keys())
		}
		s, err := r.Status(t.Context())
		if err != nil || s.Phase != PhaseNone || s.Loaded == nil || !*s.Loaded || s.Stored["secrets"][c.want] != 3 ||
			len(s.Stored["secrets"]) != 1 || s.Remark != "" {
			t.Errorf("status: %+v, %v", s, err)
		}
	}
}

// TestRotationContinues: one that was stopped while it rewrites is continued by the next server that runs it, and a
// command attaches to it.
func TestRotationContinues(t *testing.T) {
	a := newFakeAPI(t, "x", "y")
	first := a.rotation()
	updating := make(chan struct{})
	a.onUpdate = func() { close(updating) }
	stop := a.run(first)
	p, err := first.Begin(t.Context(), BeginRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-updating
	stop()
	if keys := a.keys(); keys != "secretbox key2, secretbox key1" && keys != "secretbox key2" {
		t.Errorf("stopped with keys %s", keys)
	}
	next := a.rotation()
	if s, err := FileStatus(a.file); err == nil && s.Phase != PhaseNone {
		if _, err := next.Begin(t.Context(), BeginRequest{Cipher: "aesgcm"}); err == nil ||
			!strings.Contains(err.Error(), "is under way") {
			t.Errorf("another type: %v", err)
		}
		attached, err := next.Begin(t.Context(), BeginRequest{})
		if err != nil || attached.Key != p.Key || attached.Revision < p.Revision {
			t.Errorf("attached: %+v, %v", attached, err)
		}
	}
	a.run(next)
	if _, last := follow(t, next, p, isDone); last.Key.String() != "secretbox key2" || a.keys() != "secretbox key2" {
		t.Errorf("in the end: %+v, keys %s", last, a.keys())
	}
}

// TestRotationReportsItsEndLater: a server that was stopped between the last step and its report makes up for it.
func TestRotationReportsItsEndLater(t *testing.T) {
	a := newFakeAPI(t, "x")
	r := a.rotation()
	client, err := a.store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := Progress{Key: Key{"key1", "secretbox"}, Step: "secrets: 1 of 1 rewritten"}
	if p.Revision, err = writeProgress(t.Context(), client, p); err != nil {
		t.Fatal(err)
	}
	a.run(r)
	if _, last := follow(t, r, p, isDone); a.keys() != "secretbox key1" || a.written != 0 {
		t.Errorf("%+v, keys %s, %d written", last, a.keys(), a.written)
	}
}

// TestRotationWaits: while the API server does not answer, the rotation reports why it waits; it goes on when it can.
func TestRotationWaits(t *testing.T) {
	a := newFakeAPI(t, "x")
	r := a.rotation()
	a.fail(true)
	a.run(r)
	p, err := r.Begin(t.Context(), BeginRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, p = follow(t, r, p, func(p Progress) bool { return p.Waiting != "" })
	if p.Done || !strings.Contains(p.Step, "was made") || !strings.Contains(a.keys(), "secretbox key1") {
		t.Errorf("while it waits: %+v, keys %s", p, a.keys())
	}
	a.fail(false)
	if _, p = follow(t, r, p, isDone); p.Waiting != "" || a.keys() != "secretbox key2" {
		t.Errorf("in the end: %+v, keys %s", p, a.keys())
	}
}

// TestFollowEndsWithItsContext: a command that goes away is not served any longer.
func TestFollowEndsWithItsContext(t *testing.T) {
	r := newFakeAPI(t).rotation()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := r.Follow(ctx, FollowRequest{})
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// TestBeginRefused: where a server cannot get the new key, nothing has changed.
func TestBeginRefused(t *testing.T) {
	a := newFakeAPI(t, "x")
	r := a.rotation()
	away := errors.New("s3 does not serve")
	r.cfg.Share = func(context.Context, []byte) error { return away }
	a.run(r)
	if _, err := r.Begin(t.Context(), BeginRequest{}); !errors.Is(err, away) || a.keys() != "secretbox key1" {
		t.Errorf("%v, keys %s", err, a.keys())
	}
}
