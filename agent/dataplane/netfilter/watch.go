package netfilter

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Watcher reports the changes that others make to some tables.
type Watcher struct {
	file   *os.File
	own    uint32
	tables []string
}

// Touch is a change of a table by another program.
type Touch struct {
	// Table is empty if the kernel could not report all changes: any of the tables may have been changed.
	Table string
	// Removed states that the table, or something of it, was deleted.
	Removed bool
}

// NewWatcher starts to listen for changes of the tables with these names, of all families. Changes made through own are
// not reported.
func NewWatcher(own *Conn, tables ...string) (*Watcher, error) {
	fd, _, err := socket()
	if err != nil {
		return nil, err
	}
	w := &Watcher{own: own.ID(), tables: tables}
	// The changes of own never reach the socket: the kernel's messages carry the number of the socket that made the
	// change, and a datagram never holds changes of two sockets.
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
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
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

// Run calls changed whenever another program has changed one of the tables, or may have, until ctx ends. It closes the
// watcher.
func (w *Watcher) Run(ctx context.Context, changed func(Touch)) error {
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
			changed(Touch{Removed: true}) // so much happened that some of it was lost
			continue
		case rerr != nil:
			return fmt.Errorf("listen for changes of nftables: %w", rerr)
		}
		for _, t := range touches(buf[:n], w.tables, w.own) {
			changed(t)
		}
	}
}

// touches returns the changes to tables, once each, that messages report of another socket than own. A message that it
// cannot parse may be about any of them.
func touches(b []byte, tables []string, own uint32) (out []Touch) {
	err := Messages(b, func(m Message) error {
		if m.Type&control != 0 || m.Type == unix.NFT_MSG_NEWGEN || m.PID == own {
			return nil
		}
		// The table's name is attribute 1 of everything that belongs to a table, and of the table.
		return Attrs(m.Data, func(at uint16, v []byte) error {
			if at != 1 {
				return nil
			}
			i := slices.Index(tables, cString(v))
			if i < 0 {
				return nil
			}
			for k, t := range out {
				if t.Table == tables[i] {
					out[k].Removed = t.Removed || removes(m.Type)
					return nil
				}
			}
			out = append(out, Touch{Table: tables[i], Removed: removes(m.Type)})
			return nil
		})
	})
	if err != nil {
		return []Touch{{Removed: true}}
	}
	return out
}

// removes reports whether messages of a type are about what was deleted.
func removes(typ uint16) bool {
	switch typ {
	case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		return true
	}
	return false
}
