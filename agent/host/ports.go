package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Holder is a program that listens on a port.
type Holder struct {
	PID     int
	Program string
}

// String returns program and PID.
func (h Holder) String() string { return fmt.Sprintf("%s (process %d)", h.Program, h.PID) }

// Holders returns the programs that listen on a port in this network namespace. network is tcp or udp. Processes that
// are not visible, such as those of another PID namespace, are missing.
func Holders(network string, port uint16) []Holder {
	inodes := listeningSockets(network, port)
	if len(inodes) == 0 {
		return nil
	}
	var out []Holder
	procs, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range procs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // the process has ended
		}
		if !slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
			to, err := os.Readlink(filepath.Join(dir, fd.Name()))
			return err == nil && inodes[to]
		}) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		comm, _ := os.ReadFile(filepath.Join(filepath.Dir(dir), "comm"))
		out = append(out, Holder{PID: pid, Program: strings.TrimSpace(string(comm))})
	}
	return out
}

// listeningSockets returns the sockets that listen on a port, as links in /proc/PID/fd name them.
func listeningSockets(network string, port uint16) map[string]bool {
	out := map[string]bool{}
	// The thread's table: the process has that of its main thread, which may be in another namespace.
	fs, err := procfs.NewFS("/proc/thread-self")
	if err != nil {
		return out
	}
	const listening = 10 // TCP_LISTEN of the kernel's tcp_states.h
	if network == "udp" {
		for _, read := range []func() (procfs.NetUDP, error){fs.NetUDP, fs.NetUDP6} {
			sockets, _ := read() // no IPv6, no table
			for _, s := range sockets {
				if s.LocalPort == uint64(port) {
					out[socketLink(s.Inode)] = true
				}
			}
		}
		return out
	}
	//nolint:staticcheck // inet_diag, which replaces it, is a module that small kernels do not have
	for _, read := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} {
		sockets, _ := read() // no IPv6, no table
		for _, s := range sockets {
			if s.LocalPort == uint64(port) && s.St == listening {
				out[socketLink(s.Inode)] = true
			}
		}
	}
	return out
}

func socketLink(inode uint64) string { return fmt.Sprintf("socket:[%d]", inode) }

// ErrPortHeld means that another program listens on a port.
var ErrPortHeld = errors.New("is held by")

// TryPort listens on an address and closes the socket. If another program has the port, the error wraps ErrPortHeld and
// names the program; remedy says what to do besides stopping it.
func TryPort(ctx context.Context, network, addr, remedy string) error {
	var lc net.ListenConfig
	var err error
	if network == "udp" {
		var c net.PacketConn
		if c, err = lc.ListenPacket(ctx, network, addr); err == nil {
			return c.Close()
		}
	} else {
		var l net.Listener
		if l, err = lc.Listen(ctx, network, addr); err == nil {
			return l.Close()
		}
	}
	return PortError(err, network, addr, remedy)
}

// PortError adds the program that holds the port to an error of listening on an address.
func PortError(err error, network, addr, remedy string) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.ParseUint(port, 10, 16)
	holder := "a program that is not visible here"
	if h := Holders(network, uint16(n)); len(h) > 0 {
		holder = h[0].String()
	}
	return fmt.Errorf("port %s/%s %w %s: stop it, or %s", port, network, ErrPortHeld, holder, remedy)
}
