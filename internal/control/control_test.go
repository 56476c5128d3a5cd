package control_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/socket"
)

type request struct{ Names []string }

func serve(t *testing.T, actions map[string]control.Action) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "c.sock")
	s := &control.Server{Socket: sock, Actions: actions}
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	<-up
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return sock
}

func TestActionsRunOneAtATimeBehindAPrivateSocket(t *testing.T) {
	var running atomic.Int32
	sock := serve(t, map[string]control.Action{
		"echo": func(_ context.Context, raw json.RawMessage) (any, error) {
			if running.Add(1) != 1 {
				t.Error("two at once")
			}
			defer running.Add(-1)
			var r request
			return &r, json.Unmarshal(raw, &r)
		},
		"fail": func(context.Context, json.RawMessage) (any, error) { return nil, errors.New("no such name") },
	})
	if fi, err := os.Stat(sock); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi, err)
	}
	done := make(chan error)
	for range 8 {
		go func() {
			var out request
			err := control.Call(t.Context(), sock, "echo", request{[]string{"a", "b"}}, &out)
			if err == nil && strings.Join(out.Names, " ") != "a b" {
				err = errors.New("got something else back")
			}
			done <- err
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var out request
	if err := control.Call(t.Context(), sock, "fail", request{}, &out); err == nil || err.Error() != "no such name" {
		t.Errorf("got %v", err)
	}
	if err := control.Call(t.Context(), sock, "other", request{}, &out); err == nil ||
		!strings.Contains(err.Error(), "another version") {
		t.Errorf("got %v", err)
	}
	if err := control.Call(t.Context(), sock+".none", "echo", request{}, &out); !errors.Is(err, socket.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	if err := control.Call(t.Context(), sock, "echo", strings.Repeat("x", 2<<20), &out); err == nil ||
		!strings.Contains(err.Error(), "1048576") {
		t.Errorf("a request too large: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"names":["a"]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, body []byte) {
		called := false
		s := &control.Server{Actions: map[string]control.Action{"echo": func(_ context.Context,
			raw json.RawMessage) (any, error) {
			called = true
			if !json.Valid(raw) {
				t.Error("not JSON")
			}
			return struct{}{}, nil
		}}}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/echo", bytes.NewReader(body)))
		if called != (w.Code == http.StatusOK) {
			t.Errorf("called %v, status %d", called, w.Code)
		}
	})
}

// TestARequestWithoutAPath covers a request in absolute form whose URL has no path (RFC 9112, section 3.2.2).
func TestARequestWithoutAPath(t *testing.T) {
	sock := serve(t, map[string]control.Action{})
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST http://umiak HTTP/1.1\r\nHost: umiak\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("got %s", resp.Status)
	}
}
