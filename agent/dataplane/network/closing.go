package network

import (
	"cmp"
	"context"
	"net/netip"
	"reflect"
	"slices"

	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/agent/host"
)

// Servers returns the addresses of API servers and a channel that is closed when they may have changed.
type Servers func() ([]netip.Addr, <-chan struct{})

// closePorts keeps the ports that are for the cluster alone closed to others until ctx ends, as soon as all nodes are
// known. An error is logged, and the next change tries again.
func (n *Network) closePorts(ctx context.Context) {
	select {
	case <-n.synced:
	case <-ctx.Done():
		return
	}
	for {
		all, changed := n.peers.snapshot()
		var servers []netip.Addr
		var serversChanged <-chan struct{}
		if n.cfg.Servers != nil {
			servers, serversChanged = n.cfg.Servers()
		}
		// A node that was deleted, or not registered yet, does not see all of its peers.
		if _, there := all[n.cfg.NodeName]; there {
			rules := n.peerRules(all, servers)
			if last := n.closed.Load(); last == nil || !reflect.DeepEqual(*last, rules) {
				if err := n.closeTo(ctx, rules); err != nil {
					n.cfg.Log.Warn("cannot close the ports of kubelet and vxlan to others than the cluster's nodes",
						"error", err)
				}
			}
		}
		select {
		case <-changed:
		case <-serversChanged:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Network) closeTo(ctx context.Context, rules peerports.Rules) error {
	if err := n.cfg.Journal.Made(host.KindTable, peerports.Table); err != nil {
		return err
	}
	var err error
	if rules.Empty() {
		err = n.cfg.Tables.Remove(ctx, peerports.Table)
	} else {
		err = n.cfg.Tables.Set(ctx, rules.Table())
	}
	if err == nil {
		n.closed.Store(&rules)
	}
	return err
}

// peerRules returns what the node accepts from its peers, by those of their claims that are credible.
func (n *Network) peerRules(all map[string]peer, servers []netip.Addr) peerports.Rules {
	r := peerports.Rules{Kubelet: n.cfg.KubeletPort, VXLAN: n.cfg.Backend == VXLAN, Peers: slices.Clone(servers),
		Ranges: slices.Concat(n.cfg.ClusterCIDR, n.cfg.KubeletFrom)}
	if n.cfg.Backend == None && len(n.cfg.KubeletFrom) == 0 {
		r.Kubelet = 0 // the network of the user assigns the addresses of pods, which are unknown here
	}
	accepted, _ := n.believed().accept(all)
	for _, p := range accepted {
		r.Peers = append(r.Peers, p.addrs...)
		for _, key := range []string{annPublicIP, annPublicIPv6} {
			if a, err := netip.ParseAddr(p.annotations[key]); err == nil {
				r.Peers = append(r.Peers, a.Unmap())
			}
		}
		// An administrator has set where it is reached; from where it sends is unknown.
		if cmp.Or(p.annotations[annOverride], p.annotations[annOverride6]) != "" {
			r.VXLAN = false
		}
	}
	r.Peers = slices.DeleteFunc(r.Peers, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(r.Peers, netip.Addr.Compare)
	r.Peers = slices.Compact(r.Peers)
	return r
}
