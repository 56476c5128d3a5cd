// Package socket creates unix sockets that only root can open, and HTTP clients for them. Packages status and control
// use it, and datastore for its stores. It imports nothing of umiak.
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

// ErrNotRunning means that no process listens on the socket.
var ErrNotRunning = errors.New("umiak is not running")

// maxPath is the longest path of a unix socket in bytes: sun_path in unix(7), without its zero byte.
const maxPath = 107

// Names under which Listen binds, before it renames the socket: tmpDir in the folder of the path, with a number of at
// most tmpDigits digits that os.MkdirTemp appends, and tmpName in it. They are short, as the paths of sockets must be.
const (
	tmpDir    = ".s"
	tmpName   = "s"
	tmpDigits = 10 // of a uint32
)

// CheckPath returns an error if path is too long for a unix socket. Listen may need a longer one and checks that.
func CheckPath(path string) error { return checkLength(path, len(path)) }

// checkLength returns an error if n, the length of the longest path that is bound for path, is too long.
func checkLength(path string, n int) error {
	if n <= maxPath {
		return nil
	}
	return fmt.Errorf("listen on %s: the path of a unix socket may have %d bytes, this needs %d: "+
		"choose a shorter --run-dir", path, maxPath, n)
}

// Listen creates a socket at path in place of an old one. It binds in a folder that only root can enter, sets the
// mode to 0600, and renames the socket, so that another user cannot connect at any moment. The file stays when the
// listener is closed: another one may have taken its place.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	tmp := len(filepath.Join(filepath.Dir(path), tmpDir)) + tmpDigits + len("/") + len(tmpName)
	if err := checkLength(path, max(len(path), tmp)); err != nil {
		return nil, err
	}
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	private, err := os.MkdirTemp(filepath.Dir(path), tmpDir)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(private) //nolint:errcheck // an error leaves an empty folder
	tmp := filepath.Join(private, tmpName)
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

// Client returns an HTTP client that connects to the socket at path, whatever the host in a URL is.
func Client(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn,
		error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
}

// Probe returns an error of Unanswered if no process listens at path.
func Probe(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return Unanswered(ctx, path, err)
	}
	return conn.Close()
}

// Unanswered returns the error for the user from err, the error of a request to the socket at path.
func Unanswered(ctx context.Context, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s is for root: run this as root: %w", path, fs.ErrPermission)
	case ctx.Err() == nil:
		return fmt.Errorf("%w (no answer on %s)", ErrNotRunning, path)
	}
	return err
}
