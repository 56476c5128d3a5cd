package netfilter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a netlink socket to nf_tables, in the network namespace of the thread that opened it.
type Conn struct {
	mu  sync.Mutex
	fd  int
	pid uint32
	seq uint32
	buf []byte
	snd int // size of the send buffer, as asked for
}

// Dial opens a Conn.
func Dial() (*Conn, error) {
	fd, pid, err := socket()
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: fd, pid: pid, buf: make([]byte, 64<<10)}
	// Answers are there when the request returns; a time-out guards against a bug, not a delay.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("set netlink time-out: %w", err)
	}
	// Errors come with a reason but without the whole message that they are about.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	return c, nil
}

func socket() (fd int, pid uint32, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, 0, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return 0, 0, fmt.Errorf("bind netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		_ = unix.Close(fd)
		return 0, 0, fmt.Errorf("name netlink socket: %w", err)
	}
	nl, ok := sa.(*unix.SockaddrNetlink)
	if !ok {
		_ = unix.Close(fd)
		return 0, 0, errors.New("name netlink socket: not of netlink")
	}
	return fd, nl.Pid, nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// ID returns the kernel's number of this socket, which every change made through it carries.
func (c *Conn) ID() uint32 { return c.pid }

func (c *Conn) send(b []byte) error {
	if len(b) > c.snd {
		c.snd = max(2*len(b), 256<<10)
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, c.snd); err != nil {
			_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, c.snd)
		}
	}
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// recv returns the next datagram. It is valid until the next call.
func (c *Conn) recv() ([]byte, error) {
	for {
		n, _, flags, _, err := unix.Recvmsg(c.fd, c.buf, nil, unix.MSG_PEEK|unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if flags&unix.MSG_TRUNC != 0 || n > len(c.buf) {
			c.buf = make([]byte, max(n, 2*len(c.buf)))
			continue
		}
		n, _, err = unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		return c.buf[:n], nil
	}
}

// drain discards what an earlier, failed exchange may have left in the socket.
func (c *Conn) drain() {
	for {
		_, _, err := unix.Recvfrom(c.fd, c.buf, unix.MSG_DONTWAIT)
		if err != nil && err != unix.EINTR && err != unix.ENOBUFS {
			return
		}
	}
}

// Error is a refusal by the kernel.
type Error struct {
	Errno unix.Errno
	Text  string // the kernel's explanation, if it gives one
	Seq   uint32
}

func (e *Error) Error() string {
	if e.Text == "" {
		return e.Errno.Error()
	}
	return e.Errno.Error() + ": " + e.Text
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

func parseError(m Message) *Error {
	if len(m.Data) < 4 {
		return &Error{Errno: unix.EPROTO, Seq: m.Seq}
	}
	code := int32(ne.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	e := &Error{Errno: unix.Errno(-code), Seq: m.Seq}
	if m.Flags&unix.NLM_F_ACK_TLVS != 0 && len(m.Data) >= 20 {
		_ = Attrs(m.Data[20:], func(typ uint16, v []byte) error {
			if typ == unix.NLMSGERR_ATTR_MSG {
				e.Text = cString(v)
			}
			return nil
		})
	}
	return e
}

// Commit sends a batch and waits for the answer. On error nothing of it is in the kernel, unless the error is about the
// answer (ENOBUFS, time-out): then the caller has to read the table to know.
func (c *Conn) Commit(ctx context.Context, t *Batch) error {
	if t.Empty() {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	data, last := t.finish()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	if err := c.send(data); err != nil {
		return fmt.Errorf("send batch of %d bytes: %w", len(data), err)
	}
	var errs []error
	for more := true; more; {
		b, err := c.recv()
		if err != nil {
			return errors.Join(append(errs, fmt.Errorf("receive answer to batch: %w", err))...)
		}
		err = Messages(b, func(m Message) error {
			if m.Type != unix.NLMSG_ERROR|control {
				return nil
			}
			e := parseError(m)
			if e != nil && len(errs) < 4 {
				errs = append(errs, e)
			}
			// An error about the batch as a whole is its only answer.
			if m.Seq == last || e != nil && (m.Seq <= 1 || e.Errno == unix.EPERM || e.Errno == unix.ENOMEM) {
				more = false
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("commit batch: %w", errors.Join(errs...))
	}
	return nil
}

// Dump requests everything that a get message names and calls f for each answer. The message is valid until f
// returns.
func (c *Conn) Dump(family uint8, typ uint16, fill func(*Batch), f func(Message) error) error {
	const tries = 8
	for i := 0; ; i++ {
		err := c.dumpOnce(family, typ, fill, f)
		if err == nil || i == tries || !errors.Is(err, unix.EINTR) {
			return err
		}
		// Somebody committed meanwhile. The next try is short compared with the time between commits.
		time.Sleep(time.Duration(i) * time.Millisecond)
	}
}

func (c *Conn) dumpOnce(family uint8, typ uint16, fill func(*Batch), f func(Message) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	c.seq++
	seq := c.seq | 1<<31
	t := &Batch{family: family}
	t.Msg(typ, unix.NLM_F_DUMP)
	ne.PutUint32(t.b[t.msg+8:], seq)
	fill(t)
	t.End()
	if err := c.send(t.b); err != nil {
		return fmt.Errorf("send dump request: %w", err)
	}
	interrupted := false
	for {
		b, err := c.recv()
		if err != nil {
			return fmt.Errorf("receive dump: %w", err)
		}
		done := false
		err = Messages(b, func(m Message) error {
			if m.Seq != seq {
				return nil
			}
			interrupted = interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Type {
			case unix.NLMSG_DONE | control:
				done = true
				if len(m.Data) >= 4 {
					if code := int32(ne.Uint32(m.Data)); code < 0 {
						return &Error{Errno: unix.Errno(-code)}
					}
				}
				return nil
			case unix.NLMSG_ERROR | control:
				done = true
				if e := parseError(m); e != nil {
					return e
				}
				return nil
			}
			if interrupted {
				return nil
			}
			return f(m)
		})
		if err != nil {
			return err
		}
		if done {
			if interrupted {
				return unix.EINTR
			}
			return nil
		}
	}
}

// IsNotFound reports whether the kernel refused a request because something does not exist.
func IsNotFound(err error) bool { return errors.Is(err, unix.ENOENT) }

// Explain adds to an error its remedy, where there is one.
func Explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (the process needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT),
		strings.Contains(err.Error(), "not supported"):
		return fmt.Errorf("%w (the kernel lacks a part of nf_tables: nft_ct, nft_nat, nft_masq, nft_fib, nft_reject and "+
			"nft_numgen are needed)", err)
	}
	return err
}
