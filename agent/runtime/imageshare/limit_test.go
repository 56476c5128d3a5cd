package imageshare

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestOneAddressCannotTakeAll: of a stranger who opens connections and says nothing, connectionsPerAddress are kept,
// another address is let in meanwhile, and the stranger again when one has ended.
func TestOneAddressCannotTakeAll(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFairListener(inner)
	defer f.Close()
	accepted := make(chan net.Conn, 2*connectionsPerAddress)
	go func() {
		for {
			c, err := f.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0))}
		c, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	take := func() net.Conn {
		select {
		case c := <-accepted:
			t.Cleanup(func() { _ = c.Close() })
			return c
		case <-time.After(30 * time.Second):
			t.Fatal("nobody was let in")
			return nil
		}
	}
	var first net.Conn
	for range connectionsPerAddress {
		dial("127.0.0.2")
		first = take()
	}
	c := dial("127.0.0.2")
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("one more: %v", err)
	} else if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("one more stays open")
	}
	dial("127.0.0.3")
	if got := take().RemoteAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.3" {
		t.Errorf("%s was let in", got)
	}
	_ = first.Close()
	_ = first.Close() // it counts once
	dial("127.0.0.2")
	take()
	if f.open[netip.MustParseAddr("127.0.0.2")] != connectionsPerAddress {
		t.Error(f.open)
	}
}
