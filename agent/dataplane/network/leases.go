package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/internal/overlaykey"
	"github.com/umiak-io/umiak/internal/retry"
)

// The annotations by which flannel's nodes tell each other how to be reached. They are flannel's own, so
// that nodes of one cluster may run different versions.
const (
	annManaged = "flannel.alpha.coreos.com/kube-subnet-manager"
	annType    = overlaykey.Type
)

var (
	annData, annV6Data         = overlaykey.V4.Data, overlaykey.V6.Data
	annPublicIP, annPublicIPv6 = overlaykey.V4.Public, overlaykey.V6.Public
	annOverride, annOverride6  = overlaykey.V4.Overwrite, overlaykey.V6.Overwrite
)

// peer holds the fields of a Node that the network reads; the others are removed before it is stored.
type peer struct {
	name        string
	created     time.Time
	addrs       []netip.Addr
	internal    []netip.Addr // of addrs; the others may be a router's
	ranges      []netip.Prefix
	annotations map[string]string
}

// What is kept of a Node at most.
const (
	maxRanges     = 2 // one a family
	maxAddresses  = 16
	maxAnnotation = 4096 // bytes of one
)

func peerOf(n *v1.Node) peer {
	p := peer{name: n.Name, created: n.CreationTimestamp.UTC(), annotations: map[string]string{}}
	for _, a := range addressesOf(n) {
		if ip, err := netip.ParseAddr(a.Address); err == nil && ip.Zone() == "" {
			p.addrs = append(p.addrs, ip.Unmap())
			if a.Type == v1.NodeInternalIP {
				p.internal = append(p.internal, ip.Unmap())
			}
		}
	}
	for _, c := range n.Spec.PodCIDRs[:min(len(n.Spec.PodCIDRs), maxRanges)] {
		if r, err := netip.ParsePrefix(c); err == nil {
			p.ranges = append(p.ranges, r.Masked())
		}
	}
	for _, k := range []string{annManaged, annType, annData, annV6Data, annPublicIP, annPublicIPv6, annOverride,
		annOverride6} {
		if v, ok := n.Annotations[k]; ok && len(v) <= maxAnnotation {
			p.annotations[k] = v
		}
	}
	return p
}

// addressesOf are the addresses by which others reach a Node, as many as are kept.
func addressesOf(n *v1.Node) []v1.NodeAddress {
	var out []v1.NodeAddress
	for _, a := range n.Status.Addresses {
		if len(out) < maxAddresses && (a.Type == v1.NodeInternalIP || a.Type == v1.NodeExternalIP) {
			out = append(out, a)
		}
	}
	return out
}

// rangeOf is the first range of a family.
func rangeOf(ranges []netip.Prefix, v4 bool) (netip.Prefix, bool) {
	for _, r := range ranges {
		if r.Addr().Is4() == v4 {
			return r, true
		}
	}
	return netip.Prefix{}, false
}

// lease is how flannel's backends see a node that has been accepted; ok is false where the node has not said yet how
// to be reached.
func (p peer) lease(v4, v6 bool) (l lease.Lease, ok bool) {
	if p.annotations[annManaged] != "true" {
		return l, false
	}
	l.Attrs.BackendType = p.annotations[annType]
	// A node may be reached in one family of two.
	addr, err := ip.ParseIP4(p.annotations[annPublicIP])
	if r, has := rangeOf(p.ranges, true); v4 && err == nil && has {
		l.EnableIPv4, l.Subnet, l.Attrs.PublicIP = true, ip4Net(r), addr
		l.Attrs.BackendData = data(p.annotations[annData])
	}
	addr6, err := ip.ParseIP6(p.annotations[annPublicIPv6])
	if r, has := rangeOf(p.ranges, false); v6 && err == nil && has {
		l.EnableIPv6, l.IPv6Subnet, l.Attrs.PublicIPv6 = true, ip6Net(r), addr6
		l.Attrs.BackendV6Data = data(p.annotations[annV6Data])
	}
	return l, l.EnableIPv4 || l.EnableIPv6
}

// data is the backend's data, nil for none: host-gw has none.
func data(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(s)
}

func ip4Net(p netip.Prefix) ip.IP4Net {
	return ip.IP4Net{IP: ip.FromIP(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}

func ip6Net(p netip.Prefix) ip.IP6Net {
	return ip.IP6Net{IP: ip.FromIP6(p.Addr().AsSlice()), PrefixLen: uint(p.Bits())}
}

// peers holds the nodes: the informer fills it, sessions read it.
type peers struct {
	self string

	mu   sync.Mutex
	all  map[string]peer
	wake []chan struct{} // closed and dropped at the next change
}

func newPeers(self string) *peers { return &peers{self: self, all: map[string]peer{}} }

func (p *peers) set(n peer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.all[n.name]; ok && reflect.DeepEqual(old, n) {
		return
	}
	p.all[n.name] = n
	p.changed()
}

func (p *peers) remove(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, name)
	p.changed()
}

func (p *peers) changed() {
	for _, c := range p.wake {
		close(c)
	}
	p.wake = nil
}

// snapshot returns all nodes and a channel that is closed when this is no longer true.
func (p *peers) snapshot() (map[string]peer, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]peer, len(p.all))
	for k, v := range p.all {
		out[k] = v
	}
	c := make(chan struct{})
	p.wake = append(p.wake, c)
	return out, c
}

// ranges returns this node's pod ranges, none where it has none yet.
func (p *peers) own() (peer, <-chan struct{}) {
	all, c := p.snapshot()
	return all[p.self], c
}

// manager is flannel's subnet.Manager over peers, for one session of a backend.
type manager struct {
	peers  *peers
	config *subnet.Config
	client kubernetes.Interface // as the node itself, which may change its own Node only
	ranges []netip.Prefix
	// external are the addresses at which other nodes send, instead of those of the interface.
	external []netip.Addr
	others   believed
	log      *slog.Logger
}

var _ subnet.Manager = (*manager)(nil)

func (m *manager) Name() string { return "umiak" }

func (m *manager) GetNetworkConfig(context.Context) (*subnet.Config, error) { return m.config, nil }

// AcquireLease publishes in annotations how this node is reached.
func (m *manager) AcquireLease(ctx context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	own, _ := m.peers.own()
	want := map[string]string{annManaged: "true", annType: attrs.BackendType}
	if m.config.EnableIPv4 {
		want[annPublicIP] = m.public(true, attrs.PublicIP.String())
		if o := own.annotations[annOverride]; o != "" {
			want[annPublicIP] = o
		}
		want[annData] = dataString(attrs.BackendData)
	}
	if m.config.EnableIPv6 && attrs.PublicIPv6 != nil {
		want[annPublicIPv6] = m.public(false, attrs.PublicIPv6.String())
		if o := own.annotations[annOverride6]; o != "" {
			want[annPublicIPv6] = o
		}
		want[annV6Data] = dataString(attrs.BackendV6Data)
	}
	change := map[string]string{}
	for k, v := range want {
		if own.annotations[k] != v {
			change[k] = v
		}
	}
	if len(change) > 0 {
		// Others need it to reach this node's pods; this node's pods need not wait for it.
		go m.announce(ctx, change)
	}
	l := &lease.Lease{Attrs: *attrs, Expiration: time.Now().AddDate(100, 0, 0)}
	if r, ok := rangeOf(m.ranges, true); ok && m.config.EnableIPv4 {
		l.EnableIPv4, l.Subnet = true, ip4Net(r)
	}
	if r, ok := rangeOf(m.ranges, false); ok && m.config.EnableIPv6 {
		l.EnableIPv6, l.IPv6Subnet = true, ip6Net(r)
	}
	return l, nil
}

// public returns the address of a family at which other nodes send: the first external one, or that of the interface.
func (m *manager) public(v4 bool, iface string) string {
	for _, a := range m.external {
		if a = a.Unmap(); a.Is4() == v4 {
			return a.String()
		}
	}
	return iface
}

func dataString(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "null" // as flannel itself writes it
	}
	return string(raw)
}

// announce writes the annotations, however long the API server takes to answer.
func (m *manager) announce(ctx context.Context, annotations map[string]string) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		m.log.Error("cannot write annotations", "error", err)
		return
	}
	pauses := retry.Backoff{First: 200 * time.Millisecond, Limit: 30 * time.Second}
	failed := func(err error, pause time.Duration) {
		m.log.Warn("cannot publish how other nodes reach this node's pods, trying again", "error", err, "in", pause)
	}
	_ = retry.Do(ctx, pauses, failed, func(ctx context.Context) error {
		_, err := m.client.CoreV1().Nodes().Patch(ctx, m.peers.self, types.StrategicMergePatchType, patch,
			metav1.PatchOptions{})
		return err
	}) // it fails only when ctx ends
}

// WatchLeases sends what changed among the nodes, beginning with all of them.
func (m *manager) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	sent, said := map[string]lease.Lease{}, map[string]bool{}
	for {
		all, changed := m.peers.snapshot()
		all, refused := m.others.accept(all)
		said = m.warn(said, refused)
		events := diff(sent, all, m.peers.self, m.config.EnableIPv4, m.config.EnableIPv6)
		if len(events) > 0 {
			select {
			case receiver <- []lease.LeaseWatchResult{{Events: events}}:
			case <-ctx.Done():
				return nil // flannel would log a stop as an error
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil // flannel would log a stop as an error
		}
	}
}

// warn logs what is news of the refusals, and returns all of them.
func (m *manager) warn(said map[string]bool, refused []string) map[string]bool {
	now := make(map[string]bool, len(refused))
	for _, r := range refused {
		if now[r] = true; !said[r] {
			m.log.Warn("this node does not send traffic of pods by what a Node says; if an administrator wrote it, correct it or delete that Node", "refused", r)
		}
	}
	return now
}

// diff updates sent to what is there now and returns the events that lead from one to the other.
func diff(sent map[string]lease.Lease, all map[string]peer, self string, v4, v6 bool) []lease.Event {
	var events []lease.Event
	now := map[string]lease.Lease{}
	for name, p := range all {
		if l, ok := p.lease(v4, v6); ok && name != self {
			now[name] = l
		}
	}
	// Removals go first: the range of a node that is gone may be another's by now.
	for _, name := range sortedNames(sent) {
		old := sent[name]
		if l, ok := now[name]; !ok || !reflect.DeepEqual(l, old) {
			events = append(events, lease.Event{Type: lease.EventRemoved, Lease: old})
			delete(sent, name)
		}
	}
	for _, name := range sortedNames(now) {
		if _, known := sent[name]; !known {
			events = append(events, lease.Event{Type: lease.EventAdded, Lease: now[name]})
			sent[name] = now[name]
		}
	}
	return events
}

func sortedNames(m map[string]lease.Lease) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// GetStoredMacAddresses returns the tunnel's address of before a restart, so that peers need not learn a new one.
func (m *manager) GetStoredMacAddresses(context.Context) (v4, v6 string) {
	own, _ := m.peers.own()
	mac := func(key string) string {
		end, err := overlaykey.Parse(overlaykey.VXLAN, own.annotations[key])
		if err != nil {
			return ""
		}
		return net.HardwareAddr(end.Key).String()
	}
	return mac(annData), mac(annV6Data)
}

func (m *manager) GetStoredPublicIP(context.Context) (v4, v6 string) { return "", "" }

func (m *manager) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }

var errNotOurs = errors.New("not part of umiak's network")

func (m *manager) RenewLease(context.Context, *lease.Lease) error { return errNotOurs }

func (m *manager) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errNotOurs
}

func (m *manager) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return errNotOurs
}

// flannelConfig returns the configuration of a backend of flannel. options are fields of its Backend.
func flannelConfig(backend string, cluster []netip.Prefix, options map[string]json.RawMessage) (*subnet.Config, error) {
	fields := map[string]any{"Type": backend}
	for name, v := range options {
		fields[name] = v
	}
	raw, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of flannel: %w", err)
	}
	c := &subnet.Config{EnableNFTables: true, BackendType: backend, Backend: raw}
	for _, r := range cluster {
		if r.Addr().Is4() {
			c.EnableIPv4, c.Network = true, ip4Net(r)
		} else {
			c.EnableIPv6, c.IPv6Network = true, ip6Net(r)
		}
	}
	if !c.EnableIPv4 && !c.EnableIPv6 {
		return nil, errors.New("no cluster-cidr")
	}
	return c, nil
}
