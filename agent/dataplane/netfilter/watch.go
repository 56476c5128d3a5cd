package netfilter

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Watcher hears of changes that others make to tables of one name.
type Watcher struct {
	file  *os.File
	own   uint32
	table string
}

// NewWatcher starts to listen. Changes made through own are not heard.
func NewWatcher(own *Conn, table string) (*Watcher, error) {
	fd, _, err := socket()
	if err != nil {
		return nil, err
	}
	w := &Watcher{own: own.ID(), table: table}
	// Our own changes never reach the socket: what the kernel tells of them carries the number of the
	// socket that made them, and a message never holds what two sockets did.
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 4}, // nlmsg_pid, read as big endian
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: be.Uint32(ne.AppendUint32(nil, w.own)), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 20},
		bpf.RetConstant{Val: 0},
	})
	if err == nil {
		prog := make([]unix.SockFilter, len(filter))
		for i, f := range filter {
			prog[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
		}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
	}
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen for changes of nftables: %w", err)
	}
	w.file = os.NewFile(uintptr(fd), "nftables changes")
	return w, nil
}

// Run calls changed whenever somebody else may have changed one of the tables, until ctx ends. It closes
// the watcher.
func (w *Watcher) Run(ctx context.Context, changed func()) error {
	defer w.file.Close() //nolint:errcheck // nothing can be lost
	stop := context.AfterFunc(ctx, func() { _ = w.file.Close() })
	defer stop()
	buf := make([]byte, 256<<10)
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen for changes of nftables: %w", err)
	}
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return rerr != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("listen for changes of nftables: %w", err)
		case rerr == unix.EINTR:
			continue
		case rerr == unix.ENOBUFS:
			changed() // so much happened that some of it was lost
			continue
		case rerr != nil:
			return fmt.Errorf("listen for changes of nftables: %w", rerr)
		}
		if touches(buf[:n], w.table, w.own) {
			changed()
		}
	}
}

// touches reports whether messages tell of a change to the table by another socket than own. What
// it does not understand it takes for one.
func touches(b []byte, table string, own uint32) bool {
	yes := false
	err := Messages(b, func(m Message) error {
		if m.Type&control != 0 || m.Type == unix.NFT_MSG_NEWGEN || m.PID == own {
			return nil
		}
		// The table's name is attribute 1 of everything that belongs to a table, and of the table.
		return Attrs(m.Data, func(at uint16, v []byte) error {
			yes = yes || at == 1 && CStr(v) == table
			return nil
		})
	})
	return yes || err != nil
}
