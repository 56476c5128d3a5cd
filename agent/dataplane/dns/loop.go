package dns

import (
	"context"
	"crypto/rand"
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
	l := &loopWatch{name: strings.ToLower(rand.Text()) + ".umiak-loop." + strings.TrimPrefix(zone, "."),
		found: s.foundLoop}
	l.armed.Store(true)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		l.next = next
		return l
	})
	ctx, cancel := context.WithCancel(context.Background())
	c.OnStartup(func() error {
		go l.probe(ctx, netip.AddrPortFrom(s.bind[0], s.port))
		return nil
	})
	c.OnShutdown(func() error {
		cancel()
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

// probe asks once. The listener opens right after the start hooks, which is where it was started from.
func (l *loopWatch) probe(ctx context.Context, to netip.AddrPort) {
	// A loop comes back within seconds; later the random name has no meaning.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	defer l.armed.Store(false)
	m := new(mdns.Msg).SetQuestion(l.name, mdns.TypeHINFO)
	c := mdns.Client{Timeout: 5 * time.Second}
	for ctx.Err() == nil {
		if _, _, err := c.ExchangeContext(ctx, m, to.String()); !refused(err) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	<-ctx.Done()
}
