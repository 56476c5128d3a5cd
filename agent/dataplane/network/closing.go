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

// closePorts keeps the ports that are the cluster's alone closed to others until ctx ends, from when all nodes are known.
// What cannot be written is logged, and tried again at the next change.
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
				if err := n.closeTo(rules); err != nil {
					n.cfg.Log.Warn("cannot close the ports of kubelet and vxlan to others than the cluster's nodes", "error", err)
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

func (n *Network) closeTo(rules peerports.Rules) error {
	n.closing.Lock()
	defer n.closing.Unlock()
	if err := n.cfg.Journal.Made(host.KindTable, peerports.Table); err != nil {
		return err
	}
	if err := peerports.Apply(rules); err != nil {
		return err
	}
	n.closed.Store(&rules)
	return nil
}

// peerRules are what the node lets in, as far as its peers are to be believed.
func (n *Network) peerRules(all map[string]peer, servers []netip.Addr) peerports.Rules {
	r := peerports.Rules{Kubelet: n.cfg.KubeletPort, VXLAN: n.cfg.Backend == VXLAN, Peers: slices.Clone(servers), Ranges: slices.Concat(n.cfg.ClusterCIDR, n.cfg.KubeletFrom)}
	if n.cfg.Backend == None && len(n.cfg.KubeletFrom) == 0 {
		r.Kubelet = 0 // the addresses of pods are the user's network's, which nobody has told
	}
	accepted, _ := n.believed().accept(all)
	for _, p := range accepted {
		r.Peers = append(r.Peers, p.addrs...)
		for _, key := range []string{annPublicIP, annPublicIPv6} {
			if a, err := netip.ParseAddr(p.annotations[key]); err == nil {
				r.Peers = append(r.Peers, a.Unmap())
			}
		}
		// Somebody has told where it is reached; where it sends from is not known.
		if cmp.Or(p.annotations[annOverride], p.annotations[annOverride6]) != "" {
			r.VXLAN = false
		}
	}
	r.Peers = slices.DeleteFunc(r.Peers, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(r.Peers, netip.Addr.Compare)
	r.Peers = slices.Compact(r.Peers)
	return r
}

// ResyncPorts writes the rules of closed ports again, if they have been written before. It says whether it did.
func (n *Network) ResyncPorts() (bool, error) {
	n.closing.Lock() // what is read is what is written
	defer n.closing.Unlock()
	r := n.closed.Load()
	if r == nil || r.Kubelet == 0 && !r.VXLAN {
		return false, nil
	}
	return true, peerports.Apply(*r)
}
