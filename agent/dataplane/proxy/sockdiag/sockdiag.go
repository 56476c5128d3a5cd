// Package sockdiag asks the kernel which ports programs of this machine listen on. One question costs
// about as much as opening a file: the kernel filters, so connections are not listed.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Socket is a socket that waits for connections or datagrams.
type Socket struct {
	Protocol uint8 // as in the IP header
	// Addr is unspecified for all addresses; Both is true if "::" includes IPv4.
	Addr netip.Addr
	Both bool
	Port uint16
}

// Takes reports whether packets to an address and port would go to the socket.
func (s Socket) Takes(protocol uint8, addr netip.Addr, port uint16) bool {
	if s.Protocol != protocol || s.Port != port {
		return false
	}
	if s.Addr.IsUnspecified() {
		return s.Addr.Is4() == addr.Is4() || s.Both
	}
	return s.Addr.Unmap() == addr
}

const (
	byFamily  = 20 // SOCK_DIAG_BY_FAMILY
	listening = 10 // TCP_LISTEN
	closed    = 7  // TCP_CLOSE: an UDP socket that is not connected
	v6only    = 11 // INET_DIAG_SKV6ONLY
	msgLen    = 72 // of struct inet_diag_msg
)

var ne = binary.NativeEndian

// Listeners returns the TCP and UDP sockets that wait, in the network namespace of the calling thread.
func Listeners() ([]Socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open socket diagnosis: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing can be lost
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	var out []Socket
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			s, err := dump(fd, family, protocol)
			// A kernel without a part of it (or without IPv6) has none of those to tell.
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
				return nil, fmt.Errorf("list listening sockets: %w", err)
			}
			out = append(out, s...)
		}
	}
	return out, nil
}

func dump(fd int, family, protocol uint8) ([]Socket, error) {
	state := uint32(1 << listening)
	if protocol == unix.IPPROTO_UDP {
		state = 1 << closed
	}
	req := make([]byte, 16+56)
	ne.PutUint32(req, uint32(len(req)))
	ne.PutUint16(req[4:], byFamily)
	ne.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	req[16], req[17] = family, protocol
	ne.PutUint32(req[20:], state)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var out []Socket
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return out, err
		}
		var done bool
		if out, done, err = parse(out, buf[:n], protocol); done || err != nil {
			return out, err
		}
	}
}

// parse appends the sockets of a datagram; done is true for the last one.
func parse(out []Socket, b []byte, protocol uint8) (_ []Socket, done bool, err error) {
	for len(b) >= 16 {
		n, typ := int(ne.Uint32(b)), ne.Uint16(b[4:])
		if n < 16 || n > len(b) {
			return out, true, errors.New("truncated message")
		}
		data := b[16:n]
		b = b[min((n+3)&^3, len(b)):]
		switch typ {
		case unix.NLMSG_DONE:
			return out, true, nil
		case unix.NLMSG_ERROR:
			if len(data) < 4 {
				return out, true, errors.New("truncated error")
			}
			if code := -int32(ne.Uint32(data)); code != 0 {
				return out, true, unix.Errno(code)
			}
			return out, true, nil
		case byFamily:
			if s, ok := socket(data, protocol); ok {
				out = append(out, s)
			}
		}
	}
	return out, false, nil
}

func socket(b []byte, protocol uint8) (Socket, bool) {
	if len(b) < msgLen {
		return Socket{}, false
	}
	s := Socket{Protocol: protocol, Port: binary.BigEndian.Uint16(b[4:])}
	src := b[8:24]
	switch b[0] {
	case unix.AF_INET:
		s.Addr, _ = netip.AddrFromSlice(src[:4])
	case unix.AF_INET6:
		s.Addr, _ = netip.AddrFromSlice(src)
		s.Both = true
		for a := b[msgLen:]; len(a) >= 4; {
			n := int(ne.Uint16(a))
			if n < 4 || n > len(a) {
				break
			}
			if ne.Uint16(a[2:]) == v6only && n >= 5 {
				s.Both = a[4] == 0
			}
			a = a[min((n+3)&^3, len(a)):]
		}
	default:
		return Socket{}, false
	}
	return s, true
}
