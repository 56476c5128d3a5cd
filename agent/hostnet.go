package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/dataplane/network/hostport"
	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/agent/dataplane/podsource"
	"github.com/umiak-io/umiak/agent/dataplane/serviceroute"
	"github.com/umiak-io/umiak/agent/dataplane/tables"
	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/agent/host/resolver"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/status"
	"github.com/umiak-io/umiak/internal/systemports"
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
	held, err := a.heldPorts()
	if err != nil {
		return err
	}
	cfg := network.Config{
		NodeName: a.name, NodeIPs: m.ips, Iface: a.cfg.FlannelIface, Backend: m.FlannelBackend,
		ClusterCIDR: m.ClusterCIDR, ServiceCIDR: m.ServiceCIDR, SourceCheck: a.cfg.PodSourceCheck, KubeletPort: int(a.cfg.KubeletPort), KubeletFrom: a.cfg.kubeletFrom(), Held: held,
		Dirs: a.dirs, Watch: m.agent, Self: m.node, Journal: a.machine.Load().journal, Log: a.log,
	}
	if a.cfg.ImageSharing {
		cfg.Others = a.share
	}
	if s, ok := a.joiner.(Servers); ok {
		cfg.Servers = func() ([]netip.Addr, <-chan struct{}) { return addressesOf(s.Servers()) }
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

// heldPorts are the node's own, which no pod gets.
func (a *Agent) heldPorts() (out []hostport.Held, err error) {
	m := a.member
	u, err := url.Parse(m.APIServer)
	if err != nil {
		return nil, fmt.Errorf("address of the API: %w", err)
	}
	api, err := strconv.Atoi(u.Port())
	if err != nil {
		return nil, fmt.Errorf("address of the API %s: %w", m.APIServer, err)
	}
	_, elsewhere := a.joiner.(Facts)
	node := systemports.Node{Server: !elsewhere, API: api, Kubelet: int(a.cfg.KubeletPort), Sharing: a.cfg.ImageSharing,
		VXLAN: m.FlannelBackend == network.VXLAN, WireGuard: m.FlannelBackend == network.WireGuard}
	for _, h := range node.Held() {
		out = append(out, hostport.Held{Protocol: strings.ToLower(string(h.Protocol)), Port: h.Port, Holder: h.Holder})
	}
	return out, nil
}

// addressesOf takes those of a list of HOST:PORT that are addresses.
func addressesOf(servers []string, changed <-chan struct{}) (out []netip.Addr, _ <-chan struct{}) {
	for _, s := range servers {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out, changed
}

// portRows are what a person should know of ports that are the cluster's alone: whom they were closed to.
func portRows(n *network.Network) (rows []status.Row) {
	if _, ok := n.Closed(); !ok {
		return nil
	}
	refused, err := peerports.Counts()
	if err != nil {
		return []status.Row{{Name: "ports", State: "unknown", Detail: err.Error()}}
	}
	if refused.Kubelet > 0 {
		rows = append(rows, status.Row{Name: "kubelet's port", State: "closed", Detail: fmt.Sprintf("%d connections from outside the cluster were refused; kubelet-port-from lets ranges in", refused.Kubelet)})
	}
	if refused.VXLAN > 0 {
		rows = append(rows, status.Row{Name: "vxlan", State: "closed", Detail: fmt.Sprintf("%d packets from addresses of no node were dropped", refused.VXLAN)})
	}
	return rows
}

// runRoutes lets the host reach Services without a default route.
func (a *Agent) runRoutes(ctx context.Context, ready func()) error {
	var ranges []netip.Prefix
	for _, p := range a.member.ServiceCIDR {
		if hasFamily(a.member.ips, p.Addr().Is4()) {
			ranges = append(ranges, p)
		}
	}
	return serviceroute.New(ranges, a.loopbackIsBack, a.log).Run(ctx, ready)
}

// loopbackIsBack has the node's DNS make good the address that the loopback interface has lost.
func (a *Agent) loopbackIsBack() {
	if s := a.dns.Load(); s != nil {
		if _, err := s.Resync(); err != nil {
			a.log.Warn("cannot put the addresses of the node's DNS back", "component", "dns", "error", err)
		}
	}
}

func hasFamily(addrs []netip.Addr, v4 bool) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is4() == v4 })
}

// runResolver keeps the files true from which the node's DNS and pods take the host's name servers.
func (a *Agent) runResolver(ctx context.Context, ready func()) error {
	r := resolver.New(resolver.Config{
		Asked: a.cfg.ResolvConf, PodFile: a.dirs.PodResolvConf(), HostFile: a.dirs.HostResolvConf(), ClusterDNS: a.member.ClusterDNS,
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
			ClusterDomain: m.ClusterDomain, ClusterDNS: m.ClusterDNS, ResolvConf: a.dirs.HostResolvConf(),
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
		{Name: peerports.Table, Put: func() (bool, error) {
			if n := a.network.Load(); n != nil {
				return n.ResyncPorts()
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
