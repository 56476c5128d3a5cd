package nettest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
)

// ServeTCP accepts connections at an address, in the namespace of the calling thread, until the test ends or stop is
// called. Each connection is handled on a goroutine of its own and closed when handle returns.
func ServeTCP(t testing.TB, at string, handle func(c net.Conn)) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = l.Close() }
	t.Cleanup(stop)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return stop
}

// Echo is a handler of ServeTCP that sends back what it reads.
func Echo(c net.Conn) { _, _ = io.Copy(c, c) }

// Say returns a handler of ServeTCP that sends a text.
func Say(text string) func(net.Conn) {
	return func(c net.Conn) { _, _ = io.WriteString(c, text) }
}

// ServeUDP receives datagrams at an address, in the namespace of the calling thread, until the test ends. It sends back
// what answer returns, if that is not empty. network is udp4 or udp6: from one socket for both, the answer's source is
// not always the address asked.
func ServeUDP(t testing.TB, network, at string, answer func(datagram string, from netip.Addr) string) {
	t.Helper()
	u, err := net.ListenPacket(network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = u.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			if out := answer(string(b[:n]), source(from)); out != "" {
				_, _ = u.WriteTo([]byte(out), from)
			}
		}
	}()
}

// Serve answers each connection and datagram with "name source".
func (h *Host) Serve(t testing.TB, port int) {
	t.Helper()
	say := func(from netip.Addr) string { return h.Name + " " + from.String() }
	h.Do(func() {
		ServeTCP(t, fmt.Sprintf("[::]:%d", port), func(c net.Conn) { Say(say(source(c.RemoteAddr())))(c) })
		for _, network := range []string{"udp4", "udp6"} {
			ServeUDP(t, network, fmt.Sprintf(":%d", port), func(_ string, from netip.Addr) string { return say(from) })
		}
	})
}

func source(a net.Addr) netip.Addr { return netip.MustParseAddrPort(a.String()).Addr().Unmap() }
