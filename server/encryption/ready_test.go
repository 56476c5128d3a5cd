package encryption

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// TestAwaitReady: a server that is starting is waited for, and said so once; one that is not there is not waited for
// without end.
func TestAwaitReady(t *testing.T) {
	var asked, said atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || asked.Add(1) < 3 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	client := func() rest.Interface {
		c, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		return c.Discovery().RESTClient()
	}
	progress := func(string, ...any) { said.Add(1) }
	if err := awaitReady(t.Context(), client(), progress); err != nil || said.Load() != 1 || asked.Load() != 3 {
		t.Errorf("%v, asked %d times, said %d times", err, asked.Load(), said.Load())
	}
	c := client()
	srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitReady(ctx, c, progress); err == nil || !strings.Contains(err.Error(), "umiak has to run") {
		t.Errorf("a server that is not there: %v", err)
	}
}
