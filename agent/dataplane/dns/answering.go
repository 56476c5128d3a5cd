package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	mdns "github.com/miekg/dns"
)

// answerTimeout bounds the time until the servers of a new instance answer; it takes a few milliseconds.
const answerTimeout = 5 * time.Second

// awaitAnswers returns when CoreDNS answers at all its addresses. caddy starts servers in goroutines that it does not
// wait for, and a server that is stopped before its goroutine has run serves on: after a reload with the old
// configuration, after the end with the port held.
func (s *Server) awaitAnswers() {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	for _, addr := range s.bind {
		for _, network := range []string{"udp", "tcp"} {
			if err := awaitAnswer(ctx, network, netip.AddrPortFrom(addr, s.port)); err != nil {
				s.log.Warn("DNS does not answer yet", "error", err)
				return
			}
		}
	}
}

// awaitAnswer asks until it gets an answer, whatever that is. A message without a question is refused before any plugin
// or resolver sees it.
func awaitAnswer(ctx context.Context, network string, server netip.AddrPort) error {
	var last error
	for ctx.Err() == nil {
		if last = exchange(ctx, network, server); last == nil {
			return nil
		}
	}
	return fmt.Errorf("ask %s at %s: %w", server, network, errors.Join(last, ctx.Err()))
}

func exchange(ctx context.Context, network string, server netip.AddrPort) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // what was sent has been answered
	// A query that comes before its server reads waits in the socket.
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	c := &mdns.Conn{Conn: conn}
	if err := c.WriteMsg(&mdns.Msg{MsgHdr: mdns.MsgHdr{Id: mdns.Id()}}); err != nil {
		return err
	}
	_, err = c.ReadMsg()
	return err
}
