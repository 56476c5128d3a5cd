// Package socket makes unix sockets that only root can open, and HTTP clients for them. The status and
// control packages serve on such sockets; nothing else of umiak is known here.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// ErrNotRunning means that nobody listens on the socket.
var ErrNotRunning = errors.New("umiak is not running")

// Listen replaces what a predecessor may have left at path. It binds in a folder that only root can enter
// before the mode is set, by way of a rename: at no moment can another user connect.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	private, err := os.MkdirTemp(filepath.Dir(path), ".socket-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private) //nolint:errcheck // an empty folder at worst
	tmp := filepath.Join(private, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Client speaks HTTP to whoever listens at path; the host in URLs means nothing.
func Client(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
}

// Probe returns an error, as Unanswered words it, where nobody listens at path.
func Probe(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return Unanswered(ctx, path, err)
	}
	return conn.Close()
}

// Unanswered words the error of a request that got no answer.
func Unanswered(ctx context.Context, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is for root: run this as root: %w", path, fs.ErrPermission)
	case ctx.Err() == nil:
		return fmt.Errorf("%w (no answer on %s)", ErrNotRunning, path)
	}
	return err
}
