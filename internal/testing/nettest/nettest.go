// Package nettest creates hosts from network namespaces, for tests that send real packets.
package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with a thread that runs functions in it.
type Host struct {
	Name string
	work chan func()
	fd   netns.NsHandle
	nl   *netlink.Handle
}

// New creates a namespace, which ends with the test.
func New(t testing.TB, name string) *Host {
	t.Helper()
	return enter(t, name, func() error { return unix.Unshare(unix.CLONE_NEWNET) })
}

// Here returns the namespace of the process as a Host.
func Here(t testing.TB, name string) *Host {
	t.Helper()
	return enter(t, name, func() error { return nil })
}

func enter(t testing.TB, name string, in func() error) *Host {
	t.Helper()
	h := &Host{Name: name, work: make(chan func())}
	up := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread, and the namespace with it, ends with the goroutine
		err := in()
		if err == nil {
			h.fd, err = netns.Get()
		}
		up <- err
		for f := range h.work {
			f()
		}
	}()
	if err := <-up; err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	nl, err := netlink.NewHandleAt(h.fd)
	if err != nil {
		t.Fatal(err)
	}
	h.nl = nl
	t.Cleanup(func() { nl.Close(); close(h.work); _ = h.fd.Close() })
	lo, _ := nl.LinkByName("lo")
	h.Must(t, nl.LinkSetUp(lo))
	h.Sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	h.Sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	return h
}

// Must ends the test if err is not nil.
func (h *Host) Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
}

// Do runs f in the namespace.
func (h *Host) Do(f func()) {
	done := make(chan struct{})
	h.work <- func() { defer close(done); f() }
	<-done
}

// Sysctl sets a sysctl of the namespace, named as below /proc/sys.
func (h *Host) Sysctl(t testing.TB, name, value string) {
	t.Helper()
	var err error
	h.Do(func() { err = os.WriteFile("/proc/sys/"+name, []byte(value), 0) }) // the opener's namespace counts
	h.Must(t, err)
}

// Plug connects h with a bridge of another namespace and gives it addresses.
func (h *Host) Plug(t testing.TB, dev string, to *Host, bridge string, addrs ...string) {
	t.Helper()
	tmp := fmt.Sprintf("v%s%s", h.Name, dev)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tmp
	h.Must(t, to.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "p" + tmp}))
	// A namespace ends some time after its last user: without this, the next test would find the port still there.
	t.Cleanup(func() {
		if port, err := to.nl.LinkByName(tmp); err == nil {
			_ = to.nl.LinkDel(port)
		}
	})
	peer, err := to.nl.LinkByName("p" + tmp)
	h.Must(t, err)
	h.Must(t, to.nl.LinkSetNsFd(peer, int(h.fd)))
	port, _ := to.nl.LinkByName(tmp)
	br, err := to.nl.LinkByName(bridge)
	h.Must(t, err)
	h.Must(t, to.nl.LinkSetMaster(port, br))
	h.Must(t, to.nl.LinkSetHairpin(port, true))
	h.Must(t, to.nl.LinkSetUp(port))
	peer, err = h.nl.LinkByName("p" + tmp)
	h.Must(t, err)
	h.Must(t, h.nl.LinkSetName(peer, dev))
	h.Address(t, dev, addrs...)
	// The bridge passes nothing to a port until the kernel has seen its carrier, which it looks at once a second when
	// many come and go. The CNI plugin waits for it, too.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if port, err = to.nl.LinkByName(tmp); err == nil && port.Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the port of %s is not up: %v", h.Name, err)
		}
	}
}

// Address gives addresses to a device and sets it up.
func (h *Host) Address(t testing.TB, dev string, addrs ...string) {
	t.Helper()
	l, err := h.nl.LinkByName(dev)
	h.Must(t, err)
	h.Must(t, h.nl.LinkSetUp(l))
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		h.Must(t, err)
		addr.Flags = unix.IFA_F_NODAD
		h.Must(t, h.nl.AddrAdd(l, addr))
	}
}

// Bridge creates a bridge with addresses.
func (h *Host) Bridge(t testing.TB, name string, addrs ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	h.Must(t, h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	h.Address(t, name, addrs...)
}

// Route adds a route to dst via a gateway.
func (h *Host) Route(t testing.TB, dst, via string) {
	t.Helper()
	_, n, err := net.ParseCIDR(dst)
	h.Must(t, err)
	h.Must(t, h.nl.RouteAdd(&netlink.Route{Dst: n, Gw: net.ParseIP(via)}))
}

// Patience is how long an answer may take that has to come: a busy machine is no failure. Silence is how long
// none may come where there is to be none.
// Resend is when the kernel sends a connection's first packet again.
const (
	Patience = 10 * time.Second
	Resend   = time.Second
	Silence  = 700 * time.Millisecond
)

// Ask connects and returns what was answered within the time.
func (h *Host) Ask(network, to string, within time.Duration) (answer string, err error) {
	h.Do(func() {
		d := net.Dialer{Timeout: within}
		var c net.Conn
		if c, err = d.Dial(network, to); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(within))
		if network == "udp" {
			_, _ = c.Write([]byte("?"))
			b := make([]byte, 100)
			var n int
			n, err = c.Read(b)
			answer = string(b[:n])
			return
		}
		var b []byte
		b, err = io.ReadAll(c)
		answer = string(b)
	})
	return answer, err
}

// Answer is what Ask gets, or "refused", or "silence". What was refused only when it was asked again, since
// the first packet was lost, is "refused late".
func (h *Host) Answer(t testing.TB, network, to string, within time.Duration) string {
	t.Helper()
	before := h.SentAgain(t)
	got, err := h.Ask(network, to, within)
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return got
	case errors.Is(err, syscall.ECONNREFUSED) && h.SentAgain(t) == before:
		return "refused"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused late"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "silence"
	}
	return err.Error()
}
