package nettest

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// The chunks of SCTP (RFC 9260) that tests send.
const (
	SCTPData byte = 0
	SCTPInit byte = 1
)

// Arrival is a received packet: its source address and destination port.
type Arrival struct {
	From netip.Addr
	Port uint16
}

// SCTP sends one IPv4 packet with one chunk of this type and returns the packet that arrived at another host, false
// if none did within 200 ms. The kernel's filters and NAT handle SCTP even if the kernel has no SCTP sockets.
func (h *Host) SCTP(t testing.TB, to netip.AddrPort, chunk byte, at *Host) (Arrival, bool) {
	t.Helper()
	rcv, tag := -1, rand.Uint32()|1
	at.Do(func() {
		var err error
		rcv, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err == nil {
			err = unix.SetsockoptTimeval(rcv, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
		}
		at.Must(t, err)
	})
	defer unix.Close(rcv)
	h.Do(func() {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		h.Must(t, err)
		err = unix.Sendto(s, sctpPacket(to.Port(), chunk, tag), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
		_ = unix.Close(s)
		h.Must(t, err)
	})
	b := make([]byte, 200)
	for {
		n, _, err := unix.Recvfrom(rcv, b, 0) // includes the IP header of 20 bytes
		if err != nil {
			return Arrival{}, false
		}
		if n >= 40 && binary.BigEndian.Uint32(b[36:]) == tag {
			return Arrival{netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint16(b[22:])}, true
		}
	}
}

// sctpPacket returns a common header and a chunk of 20 bytes that begins with a tag, like INIT.
func sctpPacket(port uint16, chunk byte, tag uint32) []byte {
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p[0:], uint16(20000+tag%20000))
	binary.BigEndian.PutUint16(p[2:], port)
	p[12] = chunk
	binary.BigEndian.PutUint16(p[14:], 20)
	binary.BigEndian.PutUint32(p[16:], tag)
	binary.BigEndian.PutUint32(p[20:], 65536) // window
	binary.BigEndian.PutUint16(p[24:], 1)     // streams
	binary.BigEndian.PutUint16(p[26:], 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	return p
}
