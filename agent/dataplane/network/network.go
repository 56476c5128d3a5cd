package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"    // registers itself
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"     // registers itself
	_ "github.com/flannel-io/flannel/pkg/backend/wireguard" // registers itself
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/agent/dataplane/podsource"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/overlaykey"
)

// The backends, as a user names them.
const (
	VXLAN     = "vxlan"
	HostGW    = "host-gw"
	WireGuard = "wireguard-native"
	None      = "none"
)

// ErrNoInterface means that pods of this node and of others cannot reach each other until the machine has an interface
// with the node's address. Pods run nevertheless.
var ErrNoInterface = errors.New("there is no interface")

// Network is the node's pod network.
type Network struct {
	cfg    Config
	peers  *peers
	ranges atomic.Pointer[[]netip.Prefix] // those for which rules have been written
	// sources is why pods' sources are not checked, empty where they are; nil until that is known.
	sources atomic.Pointer[string]
	synced  chan struct{} // closed when all nodes were seen once
	seen    sync.Once
	closed  atomic.Pointer[peerports.Rules] // what has been written
}

// Ranges are the node's pod ranges, nil while they are not known.
func (n *Network) Ranges() []netip.Prefix {
	if r := n.ranges.Load(); r != nil {
		return slices.Clone(*r)
	}
	return nil
}

// New checks the configuration.
func New(cfg Config) (*Network, error) {
	switch cfg.Backend {
	case VXLAN, HostGW, WireGuard, None:
	default:
		return nil, fmt.Errorf("flannel-backend: %q is not one of vxlan, host-gw, wireguard-native, none", cfg.Backend)
	}
	cfg.Log = cfg.Log.With("component", "network")
	n := &Network{cfg: cfg, peers: newPeers(cfg.NodeName), synced: make(chan struct{})}
	if cfg.Backend != None {
		if err := cfg.Flannel.check(cfg.Backend, n.flannelBackend(), cfg.ClusterCIDR); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Run connects the pods until ctx ends. It is ready once pods can be given addresses. When it ends it
// leaves everything in place, because the pods run on.
func (n *Network) Run(ctx context.Context, ready func()) error {
	// Nodes may have gone since an earlier run.
	n.peers, n.synced, n.seen = newPeers(n.cfg.NodeName), make(chan struct{}), sync.Once{}
	if n.cfg.Backend == None {
		// The user brings the network. Ours must not be found before it.
		if err := errors.Join(removeConf(n.cfg.Dirs.CNIConfig()), podsource.Off(ctx)); err != nil {
			return err
		}
		// Which pod ranges the user's network has is not known; it masquerades itself.
		if err := n.setRules(ctx, nil); err != nil {
			return err
		}
		ready()
		if n.cfg.Others == nil && len(n.cfg.KubeletFrom) == 0 {
			<-ctx.Done()
			return nil
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { n.closePorts(ctx) })
	if n.cfg.Backend == None {
		n.watchNodes(ctx)
		<-ctx.Done()
		return nil
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		n.watchNodes(ctx)
	}()

	if saved, err := loadSaved(n.savedPath()); err == nil && len(saved.PodCIDRs) > 0 {
		// As it was before: so that this node's pods start without the API server.
		if err := n.local(ctx, saved.PodCIDRs, saved.MTU); err != nil {
			n.cfg.Log.Warn("cannot set up the network as it was, waiting for the API server", "error", err)
		} else {
			ready()
		}
	}
	for {
		own, changed := n.peers.own()
		if len(own.ranges) == 0 {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := n.session(ctx, own.ranges, ready); err != nil || ctx.Err() != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// flannelBackend is flannel's name of the backend, empty with a network of the user's.
func (n *Network) flannelBackend() string {
	switch n.cfg.Backend {
	case WireGuard:
		return overlaykey.WireGuard
	case None:
		return ""
	}
	return n.cfg.Backend
}

func (n *Network) believed() believed {
	return believed{self: n.cfg.NodeName, backend: n.flannelBackend(), cluster: n.cfg.ClusterCIDR,
		services: n.cfg.ServiceCIDR, ips: n.cfg.NodeIPs}
}

// session runs flannel's backend for as long as the node keeps its ranges.
func (n *Network) session(ctx context.Context, ranges []netip.Prefix, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ext, err := n.external()
	if err != nil {
		return err
	}
	name := n.flannelBackend()
	conf, err := flannelConfig(name, n.reachable(ext), n.cfg.Flannel.options)
	if err != nil {
		return err
	}
	m := &manager{peers: n.peers, config: conf, client: n.cfg.Self, ranges: ranges, external: n.cfg.ExternalIPs,
		others: n.believed(), log: n.cfg.Log}
	be, err := backend.NewManager(ctx, m, ext).GetBackend(name)
	if err != nil {
		return fmt.Errorf("start flannel backend %s: %w", n.cfg.Backend, err)
	}
	var absent []string
	for _, i := range interfaces(n.cfg.Backend) {
		if _, err := net.InterfaceByName(i); err != nil {
			absent = append(absent, i) // others were noted when they were made, or are not ours to remove
		}
	}
	if err := n.cfg.Journal.Made(host.KindInterface, absent...); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before Wait
	overlay, err := be.RegisterNetwork(ctx, &wg, conf)
	if err != nil {
		return fmt.Errorf("start flannel backend %s (has the kernel got it? `umiak check` tells): %w", n.cfg.Backend,
			err)
	}
	if err := n.local(ctx, ranges, overlay.MTU()); err != nil {
		return err
	}
	if err := save(n.savedPath(), saved{PodCIDRs: ranges, MTU: overlay.MTU()}); err != nil {
		return err
	}
	ready()
	n.cfg.Log.Info("pod network is up", "ranges", ranges, "backend", n.cfg.Backend,
		"mtu", overlay.MTU(), "interface", ext.IfaceName)
	wg.Add(1)
	go func() {
		defer wg.Done()
		overlay.Run(ctx)
	}()
	for {
		own, changed := n.peers.own()
		// A Node that is deleted and created again has no range for a moment; only another range matters.
		if len(own.ranges) > 0 && !slices.Equal(own.ranges, ranges) {
			n.cfg.Log.Warn("this node got other pod ranges; pods that run now keep their old addresses until they are restarted", "old", ranges, "new", own.ranges)
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// reachable are the cluster's ranges of the families in which other nodes reach this one: flannel makes a device for
// each, which needs an address. In a cluster of two families a node may have an address of one alone.
func (n *Network) reachable(ext *backend.ExternalInterface) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range n.cfg.ClusterCIDR {
		if r.Addr().Is4() && ext.ExtAddr != nil || r.Addr().Is6() && ext.ExtV6Addr != nil {
			out = append(out, r)
		} else {
			n.cfg.Log.Warn("the node has no address of this family: its pods reach no other node's in it", "range", r,
				"interface", ext.IfaceName)
		}
	}
	return out
}

// interfaces are those that a backend makes, and the bridge.
func interfaces(backend string) []string {
	switch backend {
	case VXLAN:
		return []string{Bridge, "flannel.1", "flannel-v6.1"}
	case WireGuard:
		return []string{Bridge, "flannel-wg", "flannel-wg-v6"}
	}
	return []string{Bridge}
}

// local sets up what this node's own pods need: rules and CNI configuration.
func (n *Network) local(ctx context.Context, ranges []netip.Prefix, mtu int) error {
	if err := n.setRules(ctx, ranges); err != nil {
		return err
	}
	raw, err := n.renderConf(ranges, mtu, n.checkSources(ctx))
	if err != nil {
		return err
	}
	return writeConf(n.cfg.Dirs.CNIConfig(), raw)
}

// checkSources limits the running pods to sending with their own addresses, and reports whether those that start are to
// be limited as well.
func (n *Network) checkSources(ctx context.Context) bool {
	var remark string
	var err error
	if !n.cfg.SourceCheck {
		remark = "off (pod-source-check): pods may send with others' addresses"
		err = podsource.Off(ctx)
	} else if err = n.checkRunning(ctx); err != nil && !errors.Is(err, podsource.ErrKept) {
		remark = fmt.Sprintf("not checked: pods may send with others' addresses: %v", err)
	}
	if err != nil {
		n.cfg.Log.Warn("cannot check the addresses that pods send with", "error", err)
	}
	n.sources.Store(&remark)
	return remark == ""
}

func (n *Network) checkRunning(ctx context.Context) error {
	if err := n.cfg.Journal.Made(host.KindTable, podsource.Table); err != nil {
		return err
	}
	conn, err := netfilter.Dial()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is lost
	_, err = podsource.Restore(ctx, conn, podsource.Results, n.cfg.Dirs.CNIState())
	return err
}

// RestoreSources restores through conn the source checks of pods that another program has removed, and reports whether
// any were missing. It does nothing while sources are not checked.
func (n *Network) RestoreSources(ctx context.Context, conn *netfilter.Conn) (bool, error) {
	if r := n.sources.Load(); r == nil || *r != "" {
		return false, nil
	}
	return podsource.Restore(ctx, conn, podsource.Results, n.cfg.Dirs.CNIState())
}

// setRules writes the table for pod ranges; there may be none. A table without rules is removed.
func (n *Network) setRules(ctx context.Context, ranges []netip.Prefix) error {
	if len(ranges) == 0 && !n.cfg.ServiceRoutes {
		if err := n.cfg.Tables.Remove(ctx, Table); err != nil {
			return err
		}
		n.ranges.Store(&ranges)
		return nil
	}
	if err := n.cfg.Journal.Made(host.KindTable, Table); err != nil {
		return err
	}
	if err := n.cfg.Tables.Set(ctx, rules(ranges, n.cfg.ClusterCIDR, n.cfg.ServiceRoutes)); err != nil {
		return err
	}
	n.ranges.Store(&ranges)
	return nil
}

// external finds the interface for traffic between nodes.
func (n *Network) external() (*backend.ExternalInterface, error) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var best *backend.ExternalInterface // the one with the node's addresses, of both families if there is one
	found := func(e *backend.ExternalInterface) (n int) {
		if e != nil && e.ExtAddr != nil {
			n++
		}
		if e != nil && e.ExtV6Addr != nil {
			n++
		}
		return n
	}
	for i := range ifaces {
		addrs, err := ifaces[i].Addrs()
		if err != nil {
			continue // it has gone meanwhile
		}
		ext := &backend.ExternalInterface{Iface: &ifaces[i], IfaceName: ifaces[i].Name}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			addr := p.Addr().Unmap()
			mine := slices.Contains(n.cfg.NodeIPs, addr)
			if n.cfg.Iface == "" && !mine || addr.IsLinkLocalUnicast() {
				continue
			}
			ip := net.IP(addr.AsSlice())
			// The node's own address comes before others on the interface that was asked for.
			if addr.Is4() && (ext.ExtAddr == nil || mine) {
				ext.IfaceAddr, ext.ExtAddr = ip, ip
			} else if !addr.Is4() && (ext.ExtV6Addr == nil || mine) {
				ext.IfaceV6Addr, ext.ExtV6Addr = ip, ip
			}
		}
		if n.cfg.Iface == "" && found(ext) > found(best) {
			best = ext
		}
		if n.cfg.Iface == ifaces[i].Name {
			if ext.ExtAddr == nil && ext.ExtV6Addr == nil {
				return nil, fmt.Errorf("flannel-iface: %s has no address: %w", n.cfg.Iface, ErrNoInterface)
			}
			return ext, nil
		}
	}
	if best != nil {
		return best, nil
	}
	if n.cfg.Iface != "" {
		return nil, fmt.Errorf("flannel-iface: %w %s", ErrNoInterface, n.cfg.Iface)
	}
	return nil, fmt.Errorf("%w that has the node's address %v; plug in the cable, or set node-ip or flannel-iface",
		ErrNoInterface, n.cfg.NodeIPs)
}

// watchNodes keeps peers and the observer true until ctx ends. Of each Node only what they need is kept in memory.
func (n *Network) watchNodes(ctx context.Context) {
	nodes := n.cfg.Watch.CoreV1().Nodes()
	lw := cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object,
			error) {
			return nodes.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return nodes.Watch(ctx, o)
		},
	}, n.cfg.Watch)
	set := func(obj any) {
		if p, ok := obj.(*v1.Node); ok {
			n.peers.set(peerOf(p))
			if n.cfg.Others != nil {
				n.cfg.Others.Set(p)
			}
		}
	}
	_, c := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &v1.Node{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    set,
			UpdateFunc: func(_, obj any) { set(obj) },
			DeleteFunc: func(obj any) {
				if d, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = d.Obj
				}
				if p, ok := obj.(*v1.Node); ok {
					n.peers.remove(p.Name)
					if n.cfg.Others != nil {
						n.cfg.Others.Remove(p.Name)
					}
				}
			},
		},
		Transform: n.slim,
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if cache.WaitFor(ctx, "", c.HasSyncedChecker()) {
			n.seen.Do(func() { close(n.synced) })
		}
	})
	c.Run(ctx.Done())
}

// slim removes the fields of a Node that the network does not read, before it is stored.
func (n *Network) slim(obj any) (any, error) {
	from, ok := obj.(*v1.Node)
	if !ok {
		return obj, nil
	}
	s := &v1.Node{}
	s.Name, s.UID, s.ResourceVersion, s.CreationTimestamp = from.Name, from.UID, from.ResourceVersion, from.CreationTimestamp
	s.Spec.PodCIDRs = from.Spec.PodCIDRs
	s.Annotations = peerOf(from).annotations
	s.Status.Addresses = addressesOf(from)
	if n.cfg.Others != nil {
		n.cfg.Others.Keep(from, s)
	}
	return s, nil
}
