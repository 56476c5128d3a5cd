package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/umiak-io/umiak/internal/tunnelwire"
)

// errEnded means that the tunnel ended, or was replaced by a newer one, before the node answered.
var errEnded = errors.New("the tunnel ended")

// session is one connection from a node, on which this server is the HTTP/2 client.
type session struct {
	node   string
	key    []byte // public key of the node's certificate
	remote string
	since  time.Time
	conn   *tunnelwire.Conn
	http   *http.ClientConn
	// newest is canceled when the node connects again. Requests without an answer then move to the new session: the
	// node has most likely found this one dead before this end does. Guarded by Tunnels.mu.
	newest  context.Context
	replace context.CancelFunc
	// Hash of the node's CAs, "" before it has answered, and since when it has them. Guarded by Tunnels.mu.
	authorities string
	renewed     time.Time
}

func newSession(ctx context.Context, node string, c *tunnelwire.Conn) (*session, error) {
	given := false
	t := &http.Transport{
		Protocols: tunnelwire.Protocols(), HTTP2: tunnelwire.ServerEnd(), DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			if given {
				return nil, errors.New("a tunnel is one connection")
			}
			given = true
			return c, nil
		},
	}
	client, err := t.NewClientConn(ctx, "http", "node:1")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin HTTP/2: %w", err), c.Close())
	}
	s := &session{node: node, remote: c.RemoteAddr().String(), since: time.Now(), conn: c, http: client}
	s.newest, s.replace = context.WithCancel(context.Background())
	return s, nil
}

func (s *session) usable() bool {
	select {
	case <-s.conn.Ended():
		return false
	default:
		return s.http.Err() == nil
	}
}

func (s *session) close() {
	_ = s.http.Close() // it may have ended already
	_ = s.conn.Close()
}

// dial makes the node connect to addr, as long as this is the newest session. ctx bounds the dial; the connection may
// outlive it.
func (s *session) dial(ctx, newest context.Context, addr string) (net.Conn, error) {
	near, far := net.Pipe()
	life, end := context.WithCancel(context.Background())
	keep, stay := context.AfterFunc(ctx, end), context.AfterFunc(newest, end)
	fail := func(err error) (net.Conn, error) {
		keep()
		stay()
		end()
		_ = near.Close()
		_ = far.Close()
		return nil, fmt.Errorf("dial %s through the tunnel of node %s: %w", addr, s.node, err)
	}
	req := (&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: addr}, Host: addr,
		Header: http.Header{"User-Agent": {""}}, Body: &outgoing{far}, ContentLength: -1,
	}).WithContext(life)
	resp, err := s.http.RoundTrip(req) //nolint:bodyclose // closed on each way out, or by what copies it below
	switch {
	case ctx.Err() != nil:
		if err == nil {
			_ = resp.Body.Close()
		}
		return fail(context.Cause(ctx))
	case err != nil && (!s.usable() || newest.Err() != nil):
		return fail(fmt.Errorf("%w: %w", errEnded, err))
	case err != nil:
		return fail(err)
	case resp.StatusCode != http.StatusOK:
		reason, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // best effort
		_ = resp.Body.Close()
		return fail(errors.New(strings.TrimSpace(string(reason))))
	}
	if !keep() {
		_ = resp.Body.Close()
		return fail(context.Cause(ctx))
	}
	if !stay() {
		_ = resp.Body.Close()
		return fail(errEnded)
	}
	c := &stream{Conn: near, local: s.conn.LocalAddr(), remote: address(addr), end: end}
	go func() {
		_, err := io.Copy(far, resp.Body)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			c.broken.Store(&err)
		}
		_ = far.Close()
		_ = resp.Body.Close()
		end()
	}()
	return c, nil
}

// outgoing is the request body: what the API server writes to the connection.
type outgoing struct{ far net.Conn }

func (o *outgoing) Read(p []byte) (int, error) { return o.far.Read(p) }

// Close stops reading what is written. Data from the node is still delivered through the same pipe.
func (o *outgoing) Close() error { return o.far.SetReadDeadline(time.Unix(1, 0)) }

// linger is how long a closed connection stays open towards the node, which may still send data and close its end.
const linger = 2 * time.Second

// stream is a connection to an address at a node. Its deadlines are those of the pipe.
type stream struct {
	net.Conn
	local, remote net.Addr
	broken        atomic.Pointer[error]
	once          sync.Once
	end           context.CancelFunc
}

// Read returns io.EOF only if the other side has closed the connection, not if the tunnel broke.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		if cause := s.broken.Load(); cause != nil {
			err = fmt.Errorf("read from %s: the tunnel broke: %w", s.remote, *cause)
		}
	}
	return n, err
}

func (s *stream) Close() error {
	s.once.Do(func() { time.AfterFunc(linger, s.end) })
	return s.Conn.Close()
}

func (s *stream) LocalAddr() net.Addr  { return s.local }
func (s *stream) RemoteAddr() net.Addr { return s.remote }

// address is the net.Addr of a remote end to which only the node has a connection.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }
