// Package control lets commands of root run actions in the running umiak, over a unix socket that only root can open.
// Commands that only read use package status.
//
// An Action is a name with the types of its request and of its result; the process registers a handler for it, and a
// command calls it. Both are encoded as JSON. Actions run one at a time, so that two commands never change the same
// thing at once, and to their end even if the command goes away, so that they are never half done. Observations change
// nothing: they run beside actions and end with their command.
//
// It imports internal/socket. The server and commands call it.
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

// maxDocument bounds a request and a result, in bytes.
const maxDocument = 1 << 20

// Action is the name of an action or observation, with the types of its request and of its result.
type Action[Request, Result any] string

// Empty is the request of actions that need none, and the result of those that have none.
type Empty struct{}

// handler serves one action.
type handler struct {
	serve    func(ctx context.Context, request []byte) (any, error)
	observes bool // runs beside others, and ends with its command
}

// Server serves actions on a socket.
type Server struct {
	socket   string
	handlers map[string]handler // by the action's name

	one sync.Mutex // one action at a time
}

// NewServer returns a server for the socket with a path. Its actions are registered before Run.
func NewServer(path string) *Server { return &Server{socket: path, handlers: map[string]handler{}} }

// Handle registers the function that performs the action.
func (a Action[Request, Result]) Handle(s *Server, f func(context.Context, Request) (Result, error)) {
	s.handlers[string(a)] = handler{serve: a.decoded(f)}
}

// Observe registers a function that changes nothing and may wait. Its context ends when the command goes away and when
// the server stops.
func (a Action[Request, Result]) Observe(s *Server, f func(context.Context, Request) (Result, error)) {
	s.handlers[string(a)] = handler{serve: a.decoded(f), observes: true}
}

// decoded returns f for a request in JSON. The error of decoding is not quoted, since a request may hold a secret.
func (a Action[Request, Result]) decoded(f func(context.Context, Request) (Result, error)) func(context.Context,
	[]byte) (any, error) {
	return func(ctx context.Context, raw []byte) (any, error) {
		var r Request
		if json.Unmarshal(raw, &r) != nil {
			return nil, fmt.Errorf("read the request %q: it has another form: "+
				"is this umiak of another version than the command?", string(a))
		}
		return f(ctx, r)
	}
}

// refusal is the answer of a failed action.
type refusal struct {
	Error string `json:"error"`
}

// Run serves until ctx ends, then waits for a running action. The folder of the socket must exist.
func (s *Server) Run(ctx context.Context, ready func()) error {
	l, err := socket.Listen(ctx, s.socket)
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
	h, ok := s.handlers[name]
	if !ok {
		fail(http.StatusNotFound, "this umiak does not know %q: is it of another version than the command?", name)
		return
	}
	if r.Method != http.MethodPost {
		fail(http.StatusMethodNotAllowed, "POST it")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxDocument))
	if err != nil || !json.Valid(body) {
		fail(http.StatusBadRequest, "the request is not one JSON document of at most %d bytes", maxDocument)
		return
	}
	ctx := r.Context()
	if h.observes {
		// The deadline of the request would end the context of one that waits. Only a test's writer has none.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	} else {
		ctx = context.WithoutCancel(ctx)
		s.one.Lock()
		defer s.one.Unlock()
	}
	out, err := h.serve(ctx, body)
	if err != nil {
		fail(http.StatusConflict, "%v", err)
		return
	}
	_ = json.NewEncoder(w).Encode(out) // fails only if the client is gone
}

// Call runs the action in the process that listens on the socket with a path. The error wraps socket.ErrNotRunning if
// no process listens.
func (a Action[Request, Result]) Call(ctx context.Context, path string, request Request) (result Result, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return result, fmt.Errorf("encode request: %w", err)
	}
	raw, err := call(ctx, path, string(a), body)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return result, fmt.Errorf("read answer of the running umiak: %w", err)
	}
	return result, nil
}

// call sends a request and returns the body of a successful answer.
func call(ctx context.Context, path, action string, body []byte) ([]byte, error) {
	c := socket.Client(path)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://umiak/"+action, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, socket.Unanswered(ctx, path, err)
	}
	defer resp.Body.Close() //nolint:errcheck // nothing more is read
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("read answer of the running umiak: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var no refusal
		if json.Unmarshal(raw, &no) != nil || no.Error == "" {
			no.Error = resp.Status
		}
		return nil, errors.New(no.Error)
	}
	return raw, nil
}
