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

	"golang.org/x/sys/unix"
)

// Holder is a program that listens on a port.
type Holder struct {
	PID     int
	Program string
}

// String names program and process.
func (h Holder) String() string { return fmt.Sprintf("%s (process %d)", h.Program, h.PID) }

// Holders finds the programs that listen on a port of this network namespace. network is tcp or udp. Programs whose
// process cannot be seen, as those in another pid namespace, are missing.
func Holders(network string, port uint16) []Holder {
	inodes := map[string]bool{}
	for _, file := range []string{network, network + "6"} {
		// Of the thread: the process's own is the namespace of its first thread, which may have left this one.
		raw, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err == nil {
			listeningInodes(inodes, network, string(raw), port)
		}
	}
	if len(inodes) == 0 {
		return nil
	}
	var out []Holder
	procs, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range procs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // gone
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

// listeningInodes adds the sockets of a table as /proc/net/tcp or udp has it, as /proc/PID/fd links to them.
func listeningInodes(into map[string]bool, network, table string, port uint16) {
	want := fmt.Sprintf(":%04X", port)
	for l := range strings.Lines(table) {
		f := strings.Fields(l)
		if len(f) < 10 || !strings.HasSuffix(f[1], want) {
			continue
		}
		if network == "tcp" && f[3] != "0A" { // TCP_LISTEN
			continue
		}
		into["socket:["+f[9]+"]"] = true
	}
}

// ErrPortHeld means that another program listens on a port.
var ErrPortHeld = errors.New("is held by")

// TryPort listens on an address and stops at once. An address that another program has is an error that wraps
// ErrPortHeld and names the program; remedy says what to do besides stopping it.
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

// PortError is the error of listening on an address with the name of the program that holds it.
func PortError(err error, network, addr, remedy string) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.ParseUint(port, 10, 16)
	who := "a program that cannot be seen from here"
	if h := Holders(network, uint16(n)); len(h) > 0 {
		who = h[0].String()
	}
	return fmt.Errorf("port %s/%s %w %s: stop it, or %s", port, network, ErrPortHeld, who, remedy)
}
