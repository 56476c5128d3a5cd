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
	// Path is where a server takes tunnels, on the API server's port.
	Path = "/umiak/v1/tunnel"
	// Protocol is what a connection switches to, in the header Upgrade.
	Protocol = "umiak-tunnel/1"
)

// MaxStreams is how many connections a tunnel carries at once; more wait.
const MaxStreams = 500

// How a connection that nothing comes through any more is noticed: after so much quiet the other end is asked
// for a sign of life, and when nothing at all has come for so long the connection is given up. The agent asks
// first, and the answer keeps the server from asking, so an idle tunnel costs one round trip each agentQuiet.
//
// It is not the answer that is waited for, as HTTP/2 does by itself, but anything: behind much data, on a slow
// line or a busy machine, an answer may be long in coming from an end that is alive.
const (
	agentQuiet   = 2 * time.Second
	serverQuiet  = 3 * time.Second
	agentSilent  = 5 * time.Second
	serverSilent = 6 * time.Second
	pingTimeout  = 30 * time.Second
	// A write that makes no progress at all is given up as well.
	writeTimeout = 10 * time.Second
)

// Noticed is the longest time that a dead connection goes unnoticed by either end.
const Noticed = serverSilent

// window is how much may be under way to the node in one stream. The connection's own window holds all
// streams' at once: however many of them stand still, the others go on.
const window = 512 << 10

// AgentEnd are the settings of the end that answers requests.
func AgentEnd() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams: MaxStreams, MaxReceiveBufferPerStream: window, MaxReceiveBufferPerConnection: MaxStreams * window,
		SendPingTimeout: agentQuiet, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout,
	}
}

// ServerEnd are the settings of the end that sends them. What it may have under way to it is the default of
// an HTTP/2 client: 4 MiB a stream and 1 GiB in all.
func ServerEnd() *http.HTTP2Config {
	return &http.HTTP2Config{SendPingTimeout: serverQuiet, PingTimeout: pingTimeout, WriteByteTimeout: writeTimeout}
}

// Protocols is HTTP/2 and nothing else, without TLS of its own: the connection has it.
func Protocols() *http.Protocols {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	return &p
}

// Conn is the connection below HTTP/2. It hides that there is TLS, about which both ends of net/http have
// ideas of their own, and tells when and why it ended.
type Conn struct {
	net.Conn
	silent time.Duration
	once   sync.Once
	ended  chan struct{}

	mu    sync.Mutex
	ahead []byte // read from the connection with what came before HTTP/2
	cause error
}

// AgentConn takes over c at the agent's end; ahead has been read from it already.
func AgentConn(c net.Conn, ahead []byte) *Conn {
	return &Conn{Conn: c, silent: agentSilent, ahead: ahead, ended: make(chan struct{})}
}

// ServerConn takes over c at the server's end; ahead has been read from it already.
func ServerConn(c net.Conn, ahead []byte) *Conn {
	return &Conn{Conn: c, silent: serverSilent, ahead: ahead, ended: make(chan struct{})}
}

// Read fails when nothing comes for too long, and notes the error with which the connection broke.
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

// Close may be called any number of times.
func (c *Conn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// Ended is closed when the connection has been.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

// Cause is the error with which reading ended before this end closed the connection, if it did: nil
// means that this end gave it up.
func (c *Conn) Cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cause
}
