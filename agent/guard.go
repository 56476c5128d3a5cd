package agent

import (
	"context"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/internal/systemports"
)

// guard is what Services may not take on this node, and channels that are closed when that may have changed. Servers that are
// known by name alone are not among it: umiak's own connections to them pass the proxy's tables in any case, see internal/packetmark.
func (a *Agent) guard() (g *proxy.Guard, servers, facts <-chan struct{}) {
	c, list, own := a.member.Cluster, []string(nil), true
	if s, ok := a.joiner.(Servers); ok {
		list, servers = s.Servers()
	}
	if f, ok := a.joiner.(Facts); ok {
		c, facts = f.Facts()
		own = false
	}
	return a.guardOf(c, list, own), servers, facts
}

// guardOf makes the guard. own says that this is a server's own node.
func (a *Agent) guardOf(c Cluster, servers []string, own bool) *proxy.Guard {
	g := &proxy.Guard{Own: slices.Clone(a.member.ips), Ports: systemports.Ports{Kubelet: int(a.cfg.KubeletPort)},
		Ranges: slices.Concat(a.member.ClusterCIDR, a.member.ServiceCIDR), External: slices.Clone(c.ExternalIPs)}
	for _, ip := range a.cfg.NodeExternalIP {
		g.Own = append(g.Own, ip.Unmap())
	}
	for _, s := range servers {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
			g.Servers, g.Ports.API = append(g.Servers, ap), int(ap.Port())
		}
	}
	// On a server's own node the URL has the port at which all servers listen, on others that of the balancer.
	if u, err := url.Parse(c.APIServer); err == nil && own {
		if port, err := strconv.Atoi(u.Port()); err == nil {
			g.Ports.API = port
		}
	}
	return g
}

// keepGuard keeps the proxy's guard true until ctx ends: servers come and go, and settings of the cluster change.
func (a *Agent) keepGuard(ctx context.Context, p *proxy.Proxy) {
	for {
		g, servers, facts := a.guard()
		p.SetGuard(g)
		if err := g.Write(a.dirs.ProxyGuard()); err != nil {
			a.log.Warn("umiak debug service does not know what Services may not take", "component", "proxy", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-servers:
		case <-facts:
		}
	}
}
