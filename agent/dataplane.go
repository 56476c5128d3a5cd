package agent

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/network"
	"github.com/umiak-io/umiak/agent/dataplane/network/hostport"
	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/agent/dataplane/podsource"
	"github.com/umiak-io/umiak/agent/dataplane/proxy"
	"github.com/umiak-io/umiak/agent/dataplane/serviceguard"
	"github.com/umiak-io/umiak/agent/tunnel"
	"github.com/umiak-io/umiak/internal/systemports"
)

func (a *Agent) newNetwork(f clusterFacts, n *node) (*network.Network, error) {
	conf, err := network.ReadFlannelConf(a.cfg.FlannelConf)
	if err != nil {
		return nil, fmt.Errorf("flannel-conf: %w", err)
	}
	cni, err := network.ReadCNIConf(a.cfg.FlannelCNIConf)
	if err != nil {
		return nil, fmt.Errorf("flannel-cni-conf: %w", err)
	}
	cfg := network.Config{
		NodeName: a.name, NodeIPs: f.ips, Iface: a.cfg.FlannelIface, Backend: f.FlannelBackend,
		ClusterCIDR: f.ClusterCIDR, ServiceCIDR: f.ServiceCIDR, SourceCheck: a.cfg.PodSourceCheck,
		KubeletPort: int(a.cfg.KubeletPort), KubeletFrom: a.cfg.kubeletFrom(), Held: a.heldPorts(f),
		PolicySocket: a.policySocket(f), ServiceRoutes: len(f.routedServices()) > 0, Flannel: conf, CNI: cni,
		Tables: n.tables, Dirs: a.dirs, Watch: n.agent, Self: n.self, Journal: a.stage.Machine().Journal, Log: a.log,
	}
	if f.FlannelExternalIP {
		cfg.ExternalIPs = a.cfg.NodeExternalIP
	}
	if a.cfg.ImageSharing {
		cfg.Others = a.share
	}
	if s, ok := a.joiner.(Servers); ok {
		cfg.Servers = func() ([]netip.Addr, <-chan struct{}) { return addressesOf(s.Servers()) }
	}
	return network.New(cfg)
}

// heldPorts returns the node's own ports, which no pod gets.
func (a *Agent) heldPorts(f clusterFacts) (out []hostport.Held) {
	ports := systemports.Node{
		Server: a.onServer(), API: f.apiPort, Kubelet: int(a.cfg.KubeletPort), Sharing: a.cfg.ImageSharing,
		VXLAN: f.FlannelBackend == network.VXLAN, WireGuard: f.FlannelBackend == network.WireGuard,
	}
	if l, ok := a.joiner.(LocalServer); ok {
		ports.Metrics = slices.Clone(l.MetricsPorts())
	}
	flags, _ := proxy.ParseFlags(a.cfg.KubeProxyArg) // Validate returns the error
	if flags.Metrics.IsValid() && !f.KubeProxyOff {
		ports.Metrics = append(ports.Metrics, systemports.Held{Protocol: corev1.ProtocolTCP,
			Port: int(flags.Metrics.Port()), Holder: "the service proxy's metrics"})
	}
	for _, h := range ports.Held() {
		out = append(out, hostport.Held{Protocol: strings.ToLower(string(h.Protocol)), Port: h.Port, Holder: h.Holder})
	}
	if a.servers != nil {
		out = append(out, hostport.Held{Protocol: "tcp", Port: int(a.cfg.BalancerPort), Holder: "the API server"})
	}
	return out
}

// onServer reports whether this is a server's own node.
func (a *Agent) onServer() bool {
	_, elsewhere := a.joiner.(Facts)
	return !elsewhere
}

// addressesOf returns the addresses in a list of HOST:PORT, without the hosts that are names.
func addressesOf(servers []string, changed <-chan struct{}) (out []netip.Addr, _ <-chan struct{}) {
	for _, s := range servers {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out, changed
}

// newTunnels returns the tunnels by which servers on other machines reach this node's kubelet and pods. On the only
// server there are none.
func (a *Agent) newTunnels(podRanges func() []netip.Prefix) *tunnel.Tunnels {
	pki := a.dirs.AgentPKI()
	kubelet := a.kubeletAddress()
	if !kubelet.IsValid() {
		kubelet = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	cfg := tunnel.Config{
		Servers:  func() ([]string, <-chan struct{}) { return nil, nil },
		ServerCA: filepath.Join(pki, "server-ca.crt"),
		Cert:     filepath.Join(pki, "agent-client.crt"), Key: filepath.Join(pki, "agent-client.key"),
		Allow: tunnel.Allow{
			Node: a.name, PodRanges: podRanges,
			Kubelet: netip.AddrPortFrom(kubelet, uint16(a.cfg.KubeletPort)),
		},
		Log: a.log,
	}
	if s, ok := a.joiner.(Servers); ok {
		cfg.Servers, cfg.Authorities = s.Servers, s.Authorities
	}
	return tunnel.New(cfg)
}

func (a *Agent) newDNS(n *node) (*dns.Server, error) {
	pods := network.Bridge
	if n.facts.FlannelBackend == network.None {
		pods = ""
	}
	return dns.New(dns.Config{
		PodInterface: pods, NodeIPs: n.facts.ips, Endpoints: n.facts.KubeProxyOff, NodeName: a.name, Tables: n.tables,
		ClusterDomain: n.facts.ClusterDomain, ClusterDNS: n.facts.ClusterDNS, ResolvConf: a.dirs.HostResolvConf(),
		StateFile: filepath.Join(a.dirs.Agent(), "dns.json"),
		Client:    n.agent, Informers: n.informers, Log: a.log,
	})
}

// restoreDNS returns what puts the addresses of the node's DNS back after the loopback interface has lost them.
func (a *Agent) restoreDNS(n *node) func() {
	return func() {
		if err := n.dns.RestoreAddresses(); err != nil {
			a.log.Warn("cannot put the addresses of the node's DNS back", "component", "dns", "error", err)
		}
	}
}

// newTables returns the small tables of nftables, which are restored after an `nft flush ruleset` by another program.
// The proxy and the network policies restore their own. It does not run before n.network is made.
func (a *Agent) newTables(n *node) *reconcile.Tables {
	return reconcile.NewTables(a.log.With("component", "tables"), []string{network.Table, peerports.Table, dns.Table},
		reconcile.Shared{Name: podsource.Table, Repair: func(ctx context.Context, conn *netfilter.Conn) (bool, error) {
			return n.network.RestoreSources(ctx, conn)
		}},
		reconcile.Shared{Name: hostport.Table, Repair: func(ctx context.Context, conn *netfilter.Conn) (bool, error) {
			return hostport.Restore(ctx, conn, a.dirs.HostPorts())
		}})
}

// newGuard returns what keeps Services off the addresses and ports of the node and its servers.
func (a *Agent) newGuard(f clusterFacts) *serviceguard.Source {
	cfg := serviceguard.Config{
		Own: slices.Clone(f.ips), Ranges: slices.Concat(f.ClusterCIDR, f.ServiceCIDR),
		Ports:       systemports.Ports{Kubelet: int(a.cfg.KubeletPort)},
		ExternalIPs: func() ([]netip.Prefix, <-chan struct{}) { return f.ExternalIPs, nil },
		File:        a.dirs.ProxyGuard(), Log: a.log,
	}
	for _, ip := range a.cfg.NodeExternalIP {
		cfg.Own = append(cfg.Own, ip.Unmap())
	}
	if s, ok := a.joiner.(Servers); ok {
		cfg.Servers = s.Servers
	}
	if j, ok := a.joiner.(Facts); ok {
		cfg.ExternalIPs = func() ([]netip.Prefix, <-chan struct{}) {
			c, changed := j.Facts()
			return c.ExternalIPs, changed
		}
	} else {
		cfg.Ports.API = f.apiPort // on a server, the port at which all servers listen
	}
	return serviceguard.New(cfg)
}

// routedServices returns the ranges of Services that the host has a route to: those in the families that this node has
// an address of. Another proxy than the node's own makes the routes that it needs.
func (f clusterFacts) routedServices() (out []netip.Prefix) {
	if f.KubeProxyOff {
		return nil
	}
	for _, p := range f.ServiceCIDR {
		if slices.ContainsFunc(f.ips, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			out = append(out, p)
		}
	}
	return out
}
