package joinapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/internal/joinwire"
	"github.com/umiak-io/umiak/internal/token"
	"github.com/umiak-io/umiak/server/pki"
)

// TestTenThousandNames: a token gives few names to machines that never come, others are not held up, and names that
// nobody came for are given up after a while.
func TestTenThousandNames(t *testing.T) {
	ctx := t.Context()
	var mu sync.Mutex
	now := time.Now()
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	tokens := Tokens{Client: fake.NewClientset(), CA: hash, Now: clock}
	leaked, _, err := tokens.Create(ctx, Spec{Kind: token.Agent})
	if err != nil {
		t.Fatal(err)
	}
	good, _, err := tokens.Create(ctx, Spec{Kind: token.Agent})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := pki.Open(pki.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	api := New(Config{Signer: signer, Servers: &cluster{}, Own: func() string { return "" }, Now: clock, Log: quiet})
	run(t, api, tokens)

	k, asked := key(t), 0
	ask := func(tok token.Token, node string) (int, string) {
		req := joinwire.NodeRequest{Password: strings.Repeat("p", 32)}
		asked++
		req.Name, req.IPs = node, []string{fmt.Sprintf("10.0.%d.%d", asked/256, asked%256)}
		req.Kubelet = csr(t, k, name("system:node:"+node, "system:nodes"), nil)
		req.Agent = csr(t, k, name("umiak:agent:"+node, "umiak:agents"), nil)
		req.Serving = csr(t, k, name("system:node:"+node, "system:nodes"), []string{node})
		body, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, joinwire.NodePath, bytes.NewReader(body))
		r.SetBasicAuth(tok.ID, tok.Secret)
		r.Header.Set(joinwire.VersionHeader, api.cfg.Version)
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	held := func() int {
		list, err := tokens.secrets().List(ctx, metav1.ListOptions{LabelSelector: Label + "=" + labelNode})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	const byRequest = maxPending + 50 // the others go without the signatures, which cost 2 ms each
	var last string
	for i := range byRequest {
		code, body := ask(leaked, fmt.Sprintf("fake-%d", i))
		if code != http.StatusOK && code != http.StatusServiceUnavailable {
			t.Fatalf("name %d: %d %s", i, code, body)
		}
		last = body
	}
	for i := range 10_000 - byRequest {
		err := api.admit(ctx, api.ready.Load(), Record{ID: leaked.ID}, fmt.Sprintf("more-%d", i),
			strings.Repeat("p", 32), token.Agent, nil)
		var refusal *joinwire.Error
		if !errors.As(err, &refusal) || refusal.Code != joinwire.Busy {
			t.Fatalf("name %d: %v", byRequest+i, err)
		}
	}
	if n := held(); n < maxPending || n > claimBurst {
		t.Errorf("10,000 names asked for, %d given, not about %d", n, maxPending)
	}
	if !strings.Contains(last, "have not registered") || !strings.Contains(last, leaked.ID) {
		t.Errorf("the last one hears %s", last)
	}
	if code, body := ask(good, "another"); code != http.StatusOK {
		t.Errorf("with another token: %d %s", code, body)
	}

	// An hour later nobody has come. The fake client sets no time of creation, and its watch holds 100 events.
	list, err := tokens.secrets().List(ctx, metav1.ListOptions{LabelSelector: Label + "=" + labelNode})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Items[:50] {
		s.CreationTimestamp = metav1.NewTime(now)
		if _, err := tokens.secrets().Update(ctx, &s, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	now = now.Add(registerTimeout)
	mu.Unlock()
	deadline := time.Now().Add(20 * time.Second)
	for code, body := ask(leaked, "late"); code != http.StatusOK; code, body = ask(leaked, "late") {
		if time.Now().After(deadline) {
			t.Fatalf("an hour later: %d %s, %d names are held", code, body, held())
		}
	}
}

// TestFleet: machines that come are limited by their rate alone.
func TestFleet(t *testing.T) {
	var c claims
	now := time.Now()
	given := func(id string) (n int) {
		for range 2 * claimBurst {
			if c.take(id, now) {
				n++
			}
		}
		return n
	}
	if n := given("a"); n != claimBurst {
		t.Errorf("%d at once, not %d", n, claimBurst)
	}
	if n := given("b"); n != claimBurst {
		t.Errorf("another token: %d, not %d", n, claimBurst)
	}
	now = now.Add(time.Minute)
	if n := given("a"); n != 60*claimsPerSecond {
		t.Errorf("%d in a minute, not %d", n, 60*claimsPerSecond)
	}
}
