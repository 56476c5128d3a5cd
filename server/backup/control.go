package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/umiak-io/umiak/datastore/snapshot"
	"github.com/umiak-io/umiak/internal/layout"
)

// Socket is where the running server is asked for a snapshot. Only its user can open it.
func Socket(d layout.Dirs) string { return filepath.Join(d.Run, "snapshot.sock") }

// request is what `umiak snapshot save` sends.
type request struct {
	Name       string `json:"name"`
	Passphrase string `json:"passphrase,omitempty"`
}

// answer is what it gets.
type answer struct {
	Entry *snapshot.Entry `json:"entry,omitempty"`
	Error string          `json:"error,omitempty"`
}

const maxRequest = 16 << 10

// ErrNotRunning means that no server runs on the data directory.
var ErrNotRunning = errors.New("no server is running")

// serve answers on the socket until ctx ends and stop has been called.
func (k *Keeper) serve(ctx context.Context) (stop func(), err error) {
	path := Socket(k.Dirs)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen for snapshots: %w", err)
	}
	l, err := listen0600(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen for snapshots: %w", err)
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx },
		Handler: http.HandlerFunc(k.answer)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends when it is closed
	}()
	return func() {
		_ = srv.Close()
		<-done
	}, nil
}

// listen0600 makes the socket where nobody else can reach it, and moves it when it has its mode.
func listen0600(ctx context.Context, path string) (net.Listener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".sock-*") // 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // an empty folder in the run directory
	tmp := filepath.Join(dir, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (k *Keeper) answer(w http.ResponseWriter, r *http.Request) {
	var req request
	var out answer
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req)
	if err == nil {
		out.Entry, err = k.Save(r.Context(), req.Name, req.Passphrase)
	}
	if err != nil {
		out = answer{Error: err.Error()}
		w.WriteHeader(http.StatusInternalServerError)
	}
	_ = json.NewEncoder(w).Encode(out)
}

// Ask has the running server make a snapshot.
func Ask(ctx context.Context, d layout.Dirs, name, passphrase string) (*snapshot.Entry, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dial net.Dialer
		return dial.DialContext(ctx, "unix", Socket(d))
	}}}
	body, err := json.Marshal(request{name, passphrase})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://umiak/snapshot", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read
	var a answer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	return a.Entry, nil
}
