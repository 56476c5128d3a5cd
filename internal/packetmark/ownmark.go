// Package packetmark marks the packets of umiak's own connections to servers, so that the tables of the service proxy let
// them pass before they look at any Service: a rule that is wrong or stale can then not cut a node off from the servers
// that would tell it so.
package packetmark

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mark is a bit of the packet mark. 0x4000 and 0x8000 are Kubernetes' own by convention, 0x0f00 is Cilium's, 0xff0000
// Tailscale's, 0xffff0000 Calico's. The mark ends with the machine: it is nothing that a packet carries.
const Mark = 0x2000

// Control is for net.Dialer.Control. Without CAP_NET_ADMIN the connection is made all the same, unmarked.
func Control(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, Mark) // see above
	})
}

// Dialer returns a dialer with Control and the default time-outs.
func Dialer() *net.Dialer { return &net.Dialer{Control: Control} }
