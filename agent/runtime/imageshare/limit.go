package imageshare

import (
	"net"
	"net/netip"
	"sync"
)

// connectionsPerAddress bounds the open connections of one address. A node needs fewer, since it gets at most
// maxUploads blobs at once. It is far below maxConnections, so that a client that is not a node, which only the TLS
// handshake shows, cannot lock out others.
const connectionsPerAddress = 32

// fairListener closes connections from an address that has connectionsPerAddress open.
type fairListener struct {
	net.Listener
	mu   sync.Mutex
	open map[netip.Addr]int
}

func newFairListener(l net.Listener) *fairListener {
	return &fairListener{Listener: l, open: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (f *fairListener) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err == nil && !f.enter(from.Addr()) {
			_ = c.Close() // before any data was sent
			continue
		}
		return &fairConn{Conn: c, leave: sync.OnceFunc(func() { f.leave(from.Addr()) })}, nil
	}
}

func (f *fairListener) enter(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[a] >= connectionsPerAddress {
		return false
	}
	f.open[a]++
	return true
}

func (f *fairListener) leave(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[a]--; f.open[a] <= 0 {
		delete(f.open, a)
	}
}

type fairConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *fairConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
