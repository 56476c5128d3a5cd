// Package packetmark sets a packet mark on umiak's connections to servers. The tables of the service proxy accept
// marked packets before any rule of a Service, so that a wrong or stale rule cannot cut a node off from the servers,
// from which it would get the right one.
//
// It imports nothing of umiak. Whatever connects to servers uses its Dialer.
package packetmark

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mark is the bit of the packet mark. By convention 0x4000 and 0x8000 are used by Kubernetes, 0x0f00 by Cilium,
// 0xff0000 by Tailscale, 0xffff0000 by Calico. The mark exists only within the machine: no packet carries it.
const Mark = 0x2000

// Control is a function for net.Dialer.Control. Without CAP_NET_ADMIN the connection is unmarked.
func Control(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark) // an error leaves the connection unmarked
	})
}

// Dialer returns a net.Dialer with Control and no other settings.
func Dialer() *net.Dialer { return &net.Dialer{Control: Control} }
