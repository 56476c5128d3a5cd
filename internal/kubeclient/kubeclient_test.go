package kubeclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// source returns the Source of a kubeconfig that names a server.
func source(t *testing.T, host string) Source {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: a, cluster: {server: %q}}]\n"+
		"contexts: [{name: a, context: {cluster: a}}]\n", host)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Source{Kubeconfig: file}
}

func TestClientsNameTheirCaller(t *testing.T) {
	agents := make(chan string, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		agents <- r.UserAgent()
	}))
	defer srv.Close()
	s := source(t, srv.URL)
	rc, err := s.ConfigMaker("umiak-test")()
	if err != nil || rc.Host != srv.URL {
		t.Fatalf("%+v, %v", rc, err)
	}
	k, err := s.Maker("umiak-test")()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	if got := <-agents; !strings.HasSuffix(got, "/umiak-test") || got != rc.UserAgent {
		t.Errorf("user agent %q, and %q in the configuration", got, rc.UserAgent)
	}
}

// TestClientBoundsItsRequests: with a timeout a request to a server that does not answer ends.
func TestClientBoundsItsRequests(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	k, err := source(t, srv.URL).Client("umiak-test", 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	err = k.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
	var timeout interface{ Timeout() bool }
	if !errors.Is(err, context.DeadlineExceeded) && (!errors.As(err, &timeout) || !timeout.Timeout()) {
		t.Errorf("got %v", err)
	}
}

// TestEachCallReadsTheFile: certificates and servers in the kubeconfig change while the process runs.
func TestEachCallReadsTheFile(t *testing.T) {
	s := source(t, "https://127.0.0.1:6443")
	first, err := s.Config("umiak-test")
	if err != nil {
		t.Fatal(err)
	}
	second := source(t, "https://127.0.0.1:7443")
	if err := os.Rename(second.Kubeconfig, s.Kubeconfig); err != nil {
		t.Fatal(err)
	}
	now, err := s.Config("umiak-test")
	if err != nil || first.Host != "https://127.0.0.1:6443" || now.Host != "https://127.0.0.1:7443" {
		t.Errorf("first %+v, then %+v, %v", first, now, err)
	}
}

func TestErrorsNameTheFileOrTheServer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none")
	for name, f := range map[string]func() error{
		"Config": func() error { _, err := Source{Kubeconfig: file}.Config("x"); return err },
		"Client": func() error { _, err := Source{Kubeconfig: file}.Client("x", 0); return err },
	} {
		if err := f(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := &rest.Config{Host: "https://10.0.0.1", TLSClientConfig: rest.TLSClientConfig{CAFile: file}}
	if _, err := Of(bad); err == nil || !strings.Contains(err.Error(), "https://10.0.0.1") {
		t.Errorf("Of: %v", err)
	}
}
