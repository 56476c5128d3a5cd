package sockdiag

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListeners(t *testing.T) {
	for _, c := range []struct {
		network, addr string
		protocol      uint8
		takes, leaves []string
	}{
		{"tcp4", "127.0.0.1:0", unix.IPPROTO_TCP, []string{"127.0.0.1"}, []string{"127.0.0.2", "::1"}},
		{"tcp4", "0.0.0.0:0", unix.IPPROTO_TCP, []string{"127.0.0.1", "192.0.2.1"}, []string{"::1"}},
		{"tcp", "[::]:0", unix.IPPROTO_TCP, []string{"127.0.0.1", "::1"}, nil},
		{"tcp6", "[::]:0", unix.IPPROTO_TCP, []string{"fd00::1"}, []string{"127.0.0.1"}},
		{"udp4", "127.0.0.1:0", unix.IPPROTO_UDP, []string{"127.0.0.1"}, []string{"127.0.0.2"}},
		{"udp", "[::]:0", unix.IPPROTO_UDP, []string{"127.0.0.1", "::1"}, nil},
	} {
		t.Run(c.network+" "+c.addr, func(t *testing.T) {
			var port uint16
			if c.protocol == unix.IPPROTO_TCP {
				l, err := net.Listen(c.network, c.addr)
				if err != nil {
					t.Skip(err)
				}
				defer l.Close()
				port = netip.MustParseAddrPort(l.Addr().String()).Port()
				// A connection is no listener.
				if conn, err := net.Dial("tcp", l.Addr().String()); err == nil {
					defer conn.Close()
				}
			} else {
				l, err := net.ListenPacket(c.network, c.addr)
				if err != nil {
					t.Skip(err)
				}
				defer l.Close()
				port = netip.MustParseAddrPort(l.LocalAddr().String()).Port()
			}
			got, err := Listeners()
			if err != nil {
				t.Fatal(err)
			}
			is := func(a string) bool {
				return slices.ContainsFunc(got, func(s Socket) bool { return s.Takes(c.protocol, netip.MustParseAddr(a), port) })
			}
			for _, a := range c.takes {
				if !is(a) {
					t.Errorf("%s is not taken", a)
				}
			}
			for _, a := range c.leaves {
				if is(a) {
					t.Errorf("%s is taken", a)
				}
			}
		})
	}
}

func BenchmarkListeners(b *testing.B) {
	for b.Loop() {
		if _, err := Listeners(); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzParse(f *testing.F) {
	m := make([]byte, 16+msgLen+8)
	ne.PutUint32(m, uint32(len(m)))
	ne.PutUint16(m[4:], byFamily)
	m[16] = unix.AF_INET6
	f.Add(m)
	f.Fuzz(func(t *testing.T, b []byte) { _, _, _ = parse(nil, b, unix.IPPROTO_TCP) })
}
