package dns

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	mdns "github.com/miekg/dns"
)

// loopWatch does what CoreDNS's loop plugin does, without ending the process: it asks itself for a
// random name, and if that name is asked a second time, a resolver that we forward to forwards back to
// us. Then forwarding is turned off until the Corefile or the host's resolv.conf changes.
type loopWatch struct {
	next  plugin.Handler
	name  string
	seen  atomic.Int32
	armed atomic.Bool
	found func()
}

func setupLoop(c *caddy.Controller) error {
	c.Next()
	s, err := owner(c, "loop")
	if err != nil {
		return err
	}
	zone := "."
	if len(c.ServerBlockKeys) > 0 {
		if z := plugin.Host(c.ServerBlockKeys[0]).NormalizeExact(); len(z) > 0 {
			zone = z[0]
		}
	}
	l := &loopWatch{name: strings.ToLower(rand.Text()) + ".umiak-loop." + strings.TrimPrefix(zone, "."), found: s.foundLoop}
	l.armed.Store(true)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		l.next = next
		return l
	})
	c.OnStartup(func() error {
		go l.probe(s.bind[0])
		return nil
	})
	return nil
}

func (l *loopWatch) Name() string { return "loop" }

func (l *loopWatch) ServeDNS(ctx context.Context, w mdns.ResponseWriter, r *mdns.Msg) (int, error) {
	if l.armed.Load() && len(r.Question) > 0 && strings.EqualFold(r.Question[0].Name, l.name) {
		if l.seen.Add(1) == 2 {
			l.found()
		}
		if l.seen.Load() >= 2 {
			return mdns.RcodeServerFailure, nil
		}
	}
	return plugin.NextOrFailure(l.Name(), l.next, ctx, w, r)
}

// probe asks once; the socket is bound before startup is over but not read, so the question waits there.
func (l *loopWatch) probe(to netip.Addr) {
	m := new(mdns.Msg).SetQuestion(l.name, mdns.TypeHINFO)
	c := mdns.Client{Timeout: 5 * time.Second}
	for range 5 { // the listener opens right after the start hooks, which is where we were started from
		if _, _, err := c.Exchange(m, net.JoinHostPort(to.String(), "53")); err == nil || !refused(err) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	// A resolver may take its time to come back to us; after that a random name is nobody's business.
	time.Sleep(5 * time.Second)
	l.armed.Store(false)
}
