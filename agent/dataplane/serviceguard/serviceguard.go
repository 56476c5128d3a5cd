package serviceguard

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/internal/systemports"
)

// Config describes what is protected. All of it but Servers and ExternalIPs stays the same while the process runs.
type Config struct {
	Own    []netip.Addr   // this node's addresses, external ones included
	Ranges []netip.Prefix // of the cluster's pods and Services
	// Ports are those of this node; where API is zero, it is the port of the last of Servers.
	Ports systemports.Ports
	// Servers returns the API servers as HOST:PORT, and a channel that is closed when they change; nil is none. Servers
	// whose host is a name are not protected: Umiak's own connections to them pass the proxy's tables in any case, see
	// internal/packetmark.
	Servers func() (list []string, changed <-chan struct{})
	// ExternalIPs returns the ranges that spec.externalIPs may be of, and a channel that is closed when they change.
	ExternalIPs func() (ranges []netip.Prefix, changed <-chan struct{})
	File        string // where the guard is kept for `umiak debug service`
	Log         *slog.Logger
}

// Source makes guards.
type Source struct{ cfg Config }

// New returns a Source.
func New(cfg Config) *Source {
	cfg.Log = cfg.Log.With("component", "proxy")
	return &Source{cfg}
}

// Guard returns the present guard.
func (s *Source) Guard() *proxy.Guard {
	g, _, _ := s.current()
	return g
}

// Follow sets the present guard with set, keeps it in the file, and does so again at each change until ctx ends.
func (s *Source) Follow(ctx context.Context, set func(*proxy.Guard)) {
	for {
		g, servers, ranges := s.current()
		set(g)
		if err := g.Write(s.cfg.File); err != nil {
			s.cfg.Log.Warn("umiak debug service does not know what Services may not take", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-servers:
		case <-ranges:
		}
	}
}

// current returns the present guard and channels that are closed when it may have changed.
func (s *Source) current() (g *proxy.Guard, serversChanged, rangesChanged <-chan struct{}) {
	g = &proxy.Guard{Own: slices.Clone(s.cfg.Own), Ports: s.cfg.Ports, Ranges: s.cfg.Ranges}
	var servers []string
	if s.cfg.Servers != nil {
		servers, serversChanged = s.cfg.Servers()
	}
	for _, server := range servers {
		if ap, err := netip.ParseAddrPort(server); err == nil {
			ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
			g.Servers = append(g.Servers, ap)
			if s.cfg.Ports.API == 0 {
				g.Ports.API = int(ap.Port())
			}
		}
	}
	ranges, rangesChanged := s.cfg.ExternalIPs()
	g.External = slices.Clone(ranges)
	return g, serversChanged, rangesChanged
}
