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
	"sync"
	"sync/atomic"
	"testing"

	"github.com/umiak-io/umiak/internal/control"
	"github.com/umiak-io/umiak/internal/socket"
)

type request struct{ Names []string }

const (
	echo  control.Action[request, request]     = "echo"
	fail  control.Action[request, request]     = "fail"
	other control.Action[request, request]     = "other"
	large control.Action[string, request]      = "echo"
	watch control.Action[control.Empty, int32] = "watch"
)

// serve serves actions until the test ends or stop is called.
func serve(t *testing.T, register func(*control.Server)) (sock string, stop func()) {
	t.Helper()
	sock = filepath.Join(t.TempDir(), "c.sock")
	s := control.NewServer(sock)
	register(s)
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	<-up
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return sock, stop
}

func TestActionsRunOneAtATimeBehindAPrivateSocket(t *testing.T) {
	var running atomic.Int32
	sock, _ := serve(t, func(s *control.Server) {
		echo.Handle(s, func(_ context.Context, r request) (request, error) {
			if running.Add(1) != 1 {
				t.Error("two at once")
			}
			defer running.Add(-1)
			return r, nil
		})
		fail.Handle(s, func(context.Context, request) (request, error) { return request{}, errors.New("no such name") })
	})
	if fi, err := os.Stat(sock); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", fi, err)
	}
	done := make(chan error)
	for range 8 {
		go func() {
			out, err := echo.Call(t.Context(), sock, request{[]string{"a", "b"}})
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
	if _, err := fail.Call(t.Context(), sock, request{}); err == nil || err.Error() != "no such name" {
		t.Errorf("got %v", err)
	}
	if _, err := other.Call(t.Context(), sock, request{}); err == nil ||
		!strings.Contains(err.Error(), "another version") {
		t.Errorf("got %v", err)
	}
	if _, err := echo.Call(t.Context(), sock+".none", request{}); !errors.Is(err, socket.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	if _, err := large.Call(t.Context(), sock, strings.Repeat("x", 2<<20)); err == nil ||
		!strings.Contains(err.Error(), "1048576") {
		t.Errorf("a request too large: %v", err)
	}
	if _, err := large.Call(t.Context(), sock, "a secret"); err == nil ||
		!strings.Contains(err.Error(), "another version") || strings.Contains(err.Error(), "a secret") {
		t.Errorf("a request of another type: %v", err)
	}
}

// TestObservationsRunBesideActions: one that waits keeps no action from running, and ends with its command and with the
// server.
func TestObservationsRunBesideActions(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	sock, stop := serve(t, func(s *control.Server) {
		echo.Handle(s, func(_ context.Context, r request) (request, error) { return r, nil })
		watch.Observe(s, func(ctx context.Context, _ control.Empty) (int32, error) {
			began <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			return 0, context.Cause(ctx)
		})
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range 2 {
		go func() {
			_, err := watch.Call(ctx, sock, control.Empty{})
			done <- err
		}()
		<-began
		if _, err := echo.Call(t.Context(), sock, request{}); err != nil {
			t.Errorf("an action beside an observation: %v", err)
		}
	}
	cancel()
	for range 2 {
		<-ended
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the command was cancelled, and got %v", err)
		}
	}
	go func() {
		_, err := watch.Call(t.Context(), sock, control.Empty{})
		done <- err
	}()
	<-began
	go stop()
	<-ended
	if err := <-done; err == nil {
		t.Error("a server that stopped answered")
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"names":["a"]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, body []byte) {
		called := false
		s := control.NewServer("")
		control.Action[json.RawMessage, control.Empty]("echo").Handle(s, func(_ context.Context,
			raw json.RawMessage) (control.Empty, error) {
			called = true
			if !json.Valid(raw) {
				t.Error("not JSON")
			}
			return control.Empty{}, nil
		})
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/echo", bytes.NewReader(body)))
		if called != (w.Code == http.StatusOK) {
			t.Errorf("called %v, status %d", called, w.Code)
		}
	})
}

// TestARequestWithoutAPath covers a request in absolute form whose URL has no path (RFC 9112, section 3.2.2).
func TestARequestWithoutAPath(t *testing.T) {
	sock, _ := serve(t, func(*control.Server) {})
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
