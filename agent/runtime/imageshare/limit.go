package imageshare

import (
	"net"
	"net/netip"
	"sync"
)

// perAddress is how many connections one address may have open: more than a node needs, which is given uploads blobs at once,
// and far less than connections, so that a stranger, who is told from a node only in the handshake, keeps nobody out.
const perAddress = 32

// fair is a listener that closes what comes from an address beyond perAddress.
type fair struct {
	net.Listener
	mu   sync.Mutex
	open map[netip.Addr]int
}

func newFair(l net.Listener) *fair { return &fair{Listener: l, open: map[netip.Addr]int{}} }

// Accept implements net.Listener.
func (f *fair) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, err := netip.ParseAddrPort(c.RemoteAddr().String())
		if err == nil && !f.enter(from.Addr()) {
			_ = c.Close() // nobody has said anything yet
			continue
		}
		return &fairConn{Conn: c, leave: sync.OnceFunc(func() { f.leave(from.Addr()) })}, nil
	}
}

func (f *fair) enter(a netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[a] >= perAddress {
		return false
	}
	f.open[a]++
	return true
}

func (f *fair) leave(a netip.Addr) {
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
