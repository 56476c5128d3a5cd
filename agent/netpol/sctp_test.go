package netpol

import (
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const sctpInit = 1

// sctp sends one packet with one chunk of this type and reports whether it arrives.
func (w *world) sctp(from, to string, port uint16, chunk byte) bool {
	w.t.Helper()
	rcv := -1
	w.hosts[to].Do(func() {
		var err error
		if rcv, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP); err != nil {
			w.t.Error(err)
			return
		}
		_ = unix.SetsockoptTimeval(rcv, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
	})
	defer unix.Close(rcv)
	p := make([]byte, 12+20)
	binary.BigEndian.PutUint16(p[0:], uint16(20000+time.Now().UnixNano()%20000))
	binary.BigEndian.PutUint16(p[2:], port)
	p[12] = chunk
	binary.BigEndian.PutUint16(p[14:], 20)
	binary.BigEndian.PutUint32(p[16:], 7)     // initiate tag
	binary.BigEndian.PutUint32(p[20:], 65536) // window
	binary.BigEndian.PutUint16(p[24:], 1)
	binary.BigEndian.PutUint16(p[26:], 1)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
	w.hosts[from].Do(func() {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_SCTP)
		if err == nil {
			err = unix.Sendto(s, p, 0, &unix.SockaddrInet4{Addr: w.addrs[to].As4()})
			_ = unix.Close(s)
		}
		if err != nil {
			w.t.Error(err)
		}
	})
	b := make([]byte, 200)
	for {
		n, _, err := unix.Recvfrom(rcv, b, 0)
		if err != nil {
			return false
		}
		if n >= 24 && binary.BigEndian.Uint16(b[22:]) == port {
			return true
		}
	}
}

// thread is a second thread in the node's namespace: the first runs Policies.
type thread chan func()

func (t thread) Do(f func()) {
	done := make(chan struct{})
	t <- func() { defer close(done); f() }
	<-done
}

func (w *world) nodeThread() thread {
	if w.second != nil {
		return w.second
	}
	w.second = make(thread)
	up := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(w.nodeNS, unix.CLONE_NEWNET)
		up <- err
		for f := range w.second {
			f()
		}
	}()
	if err := <-up; err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { close(w.second) })
	return w.second
}
