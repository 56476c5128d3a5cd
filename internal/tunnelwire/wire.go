package tunnelwire

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

const (
	// Path is the path at which a server accepts tunnels, on the API server's port.
	Path = "/umiak/v1/tunnel"
	// Protocol is the value of the header Upgrade.
	Protocol = "umiak-tunnel/1"
)

// maxStreams is the number of connections that a tunnel carries at once; further ones wait.
const maxStreams = 500

// Timeouts by which each end detects a dead connection: an end sends a ping after it has received nothing for
// agentQuiet or serverQuiet, and closes the connection after it has received nothing for agentSilent or serverSilent.
// The agent sends its ping first, and the answer is traffic for both, so an idle tunnel costs one round trip per
// agentQuiet.
//
// Any data counts, not only the answer to the ping as in HTTP/2: behind much data, on a slow line or a busy machine,
// the answer of a live end may take long.
const (
	agentQuiet   = 2 * time.Second
	serverQuiet  = 3 * time.Second
	agentSilent  = 5 * time.Second
	serverSilent = 6 * time.Second
	pingTimeout  = 30 * time.Second
	// writeTimeout is the time without any progress of a write after which the connection is closed, too.
	writeTimeout = 10 * time.Second
)

// window is the number of bytes that may be in flight to the node in one stream. The window of the connection is as
// large as those of all streams, so that stalled streams do not block the others.
const window = 512 << 10

// AgentEnd returns the settings of the agent's end, which answers requests.
func AgentEnd() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerStream: window,
		MaxReceiveBufferPerConnection: maxStreams * window,
		SendPingTimeout:               agentQuiet, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout,
	}
}

// ServerEnd returns the settings of the server's end, which sends requests. Its windows are the defaults of an HTTP/2
// client: 4 MiB per stream and 1 GiB in all.
func ServerEnd() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: serverQuiet, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout}
}

// Protocols returns only HTTP/2 without TLS, which the connection below has.
func Protocols() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// Conn is the connection below HTTP/2. It hides TLS, which both ends of net/http would treat specially, and reports
// when and why the connection ended.
type Conn struct {
	net.Conn
	silent time.Duration
	once   sync.Once
	ended  chan struct{}

	mu    sync.Mutex
	ahead []byte // data of HTTP/2 that was read together with the HTTP/1.1 message before it
	cause error
}

// AgentConn returns the Conn of the agent's end on c, from which ahead has been read already.
func AgentConn(c net.Conn, ahead []byte) *Conn {
	return &Conn{Conn: c, silent: agentSilent, ahead: ahead, ended: make(chan struct{})}
}

// ServerConn returns the Conn of the server's end on c, from which ahead has been read already.
func ServerConn(c net.Conn, ahead []byte) *Conn {
	return &Conn{Conn: c, silent: serverSilent, ahead: ahead, ended: make(chan struct{})}
}

// Read implements net.Conn. It fails when nothing arrives for too long, and stores the error for Cause.
func (c *Conn) Read(p []byte) (int, error) {
	if n := c.readAhead(p); n > 0 {
		return n, nil
	}
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.silent)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("nothing came from the other end for %s", c.silent)
	}
	if err != nil {
		c.mu.Lock()
		if c.cause == nil && !c.closed() {
			c.cause = err
		}
		c.mu.Unlock()
	}
	return n, err
}

func (c *Conn) readAhead(p []byte) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := copy(p, c.ahead)
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil
	}
	return n
}

func (c *Conn) closed() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// Close closes the connection. It may be called several times.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// Ended returns a channel that is closed with the connection.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Cause returns the error with which reading failed before this end closed the connection. It is nil if this end
// closed it first.
func (c *Conn) Cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}
