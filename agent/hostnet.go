package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/podsource"
	"github.com/umiak-io/umiak/agent/dataplane/serviceroute"
	"github.com/umiak-io/umiak/agent/dns"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/agent/network"
	"github.com/umiak-io/umiak/agent/network/hostport"
	"github.com/umiak-io/umiak/agent/tables"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// followAddresses has the process execute itself anew when the node has other addresses than the kubelet was started
// with.
func (a *Agent) followAddresses(ctx context.Context, ready func()) error {
	err := a.addrs.Run(ctx, ready)
	if moved := new(nodeip.Moved); errors.As(err, &moved) {
		return &lifecycle.Anew{Part: nodeip.Part, Err: moved}
	}
	return err
}

func (a *Agent) runNetwork(ctx context.Context, ready func()) error {
	m := a.member
	if own := a.ownNetwork.Load(); own != nil && *own != (m.FlannelBackend == network.None) {
		return fmt.Errorf("the cluster's flannel-backend has become %s since this node joined; restart umiak on it", m.FlannelBackend)
	}
	cfg := network.Config{
		NodeName: a.name, NodeIPs: m.ips, Iface: a.cfg.FlannelIface, Backend: m.FlannelBackend,
		ClusterCIDR: m.clusterCIDR, ServiceCIDR: m.serviceCIDR, SourceCheck: a.cfg.PodSourceCheck,
		Dirs: a.dirs, Watch: m.agent, Self: m.node, Journal: a.machine.Load().journal, Log: a.log,
	}
	if a.cfg.ImageSharing {
		cfg.Others = a.share
	}
	n, err := network.New(cfg)
	if err != nil {
		return err
	}
	a.network.Store(n)
	_, changed := a.addrs.Now()
	if err = n.Run(ctx, ready); errors.Is(err, network.ErrNoInterface) {
		return lifecycle.WakeOn(err, changed)
	}
	return err
}

// runRoutes lets the host reach Services without a default route.
func (a *Agent) runRoutes(ctx context.Context, ready func()) error {
	var ranges []netip.Prefix
	for _, p := range a.member.serviceCIDR {
		if hasFamily(a.member.ips, p.Addr().Is4()) {
			ranges = append(ranges, p)
		}
	}
	return serviceroute.New(ranges, a.log).Run(ctx, ready)
}

func hasFamily(addrs []netip.Addr, v4 bool) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
}

// runResolver keeps the files true from which the node's DNS and pods take the host's name servers.
func (a *Agent) runResolver(ctx context.Context, ready func()) error {
	r := resolver.New(resolver.Config{
		Asked: a.cfg.ResolvConf, PodFile: a.dirs.PodResolvConf(), HostFile: a.dirs.HostResolvConf(), ClusterDNS: a.member.dns,
		Changed: func() {
			if s := a.dns.Load(); s != nil {
				s.ResolversChanged()
			}
		},
		Log: a.log,
	})
	a.resolv.Store(r)
	return r.Run(ctx, ready)
}

func (a *Agent) runDNS(ctx context.Context, ready func()) error {
	m := a.member
	pods := network.Bridge
	if m.FlannelBackend == network.None {
		pods = ""
	}
	s, err := once(&a.dns, func() (*dns.Server, error) {
		return dns.New(dns.Config{
			PodInterface: pods, NodeIPs: m.ips,
			NodeName:      a.name,
			ClusterDomain: m.ClusterDomain, ClusterDNS: m.dns, ResolvConf: a.dirs.HostResolvConf(),
			StateFile: filepath.Join(a.dirs.Agent(), "dns.json"),
			Client:    m.agent, Informers: m.informers, Log: a.log,
		})
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, ready)
}

// watchTables keeps a foreign `nft flush ruleset` from cutting pods off; the proxy repairs its own table.
func (a *Agent) watchTables(ctx context.Context, ready func()) error {
	return tables.Watch{Log: a.log.With("component", "tables"), Tables: []tables.Table{
		{Name: network.Table, Put: func() (bool, error) {
			if n := a.network.Load(); n != nil {
				return n.Resync()
			}
			return false, nil
		}},
		{Name: dns.Table, Put: func() (bool, error) {
			if s := a.dns.Load(); s != nil {
				return s.Resync()
			}
			return false, nil
		}},
		{Name: podsource.Table, Checks: true, Put: func() (bool, error) {
			if n := a.network.Load(); n != nil {
				return n.ResyncSources()
			}
			return false, nil
		}},
		{Name: hostport.Table, Checks: true, Put: func() (bool, error) { return hostport.Restore(a.dirs.HostPorts()) }},
	}}.Run(ctx, ready)
}
