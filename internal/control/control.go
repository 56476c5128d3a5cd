// Package control lets commands of root run actions in the running umiak, over a unix socket that only root can open.
// Commands that only read use package status.
//
// The process registers actions by name. A command calls one with a small JSON document and gets one back. Actions
// run one at a time, so that two commands never change the same thing at once. An action runs to its end even if its
// command goes away, so that it is never half done.
//
// It imports internal/socket. Server, agent and commands call it.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/umiak-io/umiak/internal/socket"
)

// limit is the most bytes of a request or an answer.
const limit = 1 << 20

// Action performs a request. Its result is encoded as JSON.
type Action func(ctx context.Context, request json.RawMessage) (any, error)

// Server serves actions on a socket.
type Server struct {
	Socket  string            // path
	Actions map[string]Action // by name

	one sync.Mutex // one action at a time
}

// refusal is the answer of a failed action.
type refusal struct {
	Error string `json:"error"`
}

// Run serves until ctx ends, then waits for a running action. The folder of the socket must exist.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := socket.Listen(ctx, s.Socket)
	if err != nil {
		return fmt.Errorf("open the control socket: %w", err)
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, Handler: s}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	ready()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control: %w", err)
	}
	s.one.Lock() // waits for a running action
	defer s.one.Unlock()
	return nil
}

// ServeHTTP runs one action.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fail := func(code int, format string, a ...any) {
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(refusal{fmt.Sprintf(format, a...)}) // fails only if the client is gone
	}
	name := strings.TrimPrefix(r.URL.Path, "/") // the path may be empty (RFC 9112, section 3.2.2)
	act := s.Actions[name]
	if act == nil {
		fail(http.StatusNotFound, "this umiak does not know %q: is it of another version than the command?", name)
		return
	}
	if r.Method != http.MethodPost {
		fail(http.StatusMethodNotAllowed, "POST it")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil || !json.Valid(body) {
		fail(http.StatusBadRequest, "the request is not one JSON document of at most %d bytes", limit)
		return
	}
	s.one.Lock()
	defer s.one.Unlock()
	out, err := act(context.WithoutCancel(r.Context()), body)
	if err != nil {
		fail(http.StatusConflict, "%v", err)
		return
	}
	_ = json.NewEncoder(w).Encode(out) // fails only if the client is gone
}

// Call runs an action in the process that listens on the socket and decodes its result into response. The error wraps
// socket.ErrNotRunning if no process listens.
func Call(ctx context.Context, path, action string, request, response any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	c := socket.Client(path)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://umiak/"+action, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return socket.Unanswered(ctx, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing more is read
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit))
	if err != nil {
		return fmt.Errorf("read answer of the running umiak: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var no refusal
		if json.Unmarshal(raw, &no) != nil || no.Error == "" {
			no.Error = resp.Status
		}
		return errors.New(no.Error)
	}
	if err := json.Unmarshal(raw, response); err != nil {
		return fmt.Errorf("read answer of the running umiak: %w", err)
	}
	return nil
}
