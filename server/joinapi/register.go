package joinapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"github.com/umiak-io/umiak/internal/joinwire"
)

// leaseEnded is the time after the end of a node's Lease from which another node may have its address: DHCP gives the
// address of a machine that is gone to the next one.
const leaseEnded = 5 * time.Minute

// contested refuses a machine that comes for the first time with an address of a node that lives, or with a name that
// it may not have, before anything is written for it. One that is back may have others to give up, see register.
func (a *API) contested(ctx context.Context, s *serving, n *node) error {
	if rec := s.known.node(n.name); rec != nil && owns(rec, n.password) {
		return nil
	}
	refused, err := a.contestedNames(ctx, s, n)
	if err != nil {
		return err
	}
	for _, text := range n.ips {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return err
		}
		_, err = a.vacant(ctx, s, n, ip)
		var taken *addressTaken
		if err != nil && !errors.As(err, &taken) {
			return err
		}
		refused = errors.Join(refused, err)
	}
	if refused != nil {
		return joinwire.Refuse(joinwire.Busy, "%v", refused)
	}
	return nil
}

// register records what a node has: its addresses, for which it gets certificates, and the keys of these. It writes
// only what is new. An address that a node has registered that lives is refused; what the node itself does not name
// any more is free at once, so that two machines may swap their addresses. Further names that the node may not have are
// removed from n.
func (a *API) register(ctx context.Context, s *serving, n *node) error {
	if err := a.dropNames(ctx, s, n); err != nil {
		return err
	}
	a.takeNames(ctx, s, n)
	now, err := n.addresses()
	if err != nil {
		return err
	}
	if rec := s.known.node(n.name); rec != nil {
		others := func(ip netip.Addr) bool { return a.members.Disputed(n.name, ip) } // while it is being taken away
		if m, ok := memberOf(rec); ok && m.holds(n.proves(now, m)) &&
			slices.Equal(m.keys, keysOf(m.keys, n.kubelet, n.agent)) && !slices.ContainsFunc(now.IPs, others) {
			return nil
		}
	}
	var refused error
	granted := addresses{External: now.External, Names: now.Names}
	for _, ip := range now.IPs {
		if err := a.vacate(ctx, s, n, ip); err != nil {
			refused = errors.Join(refused, err)
		} else {
			granted.IPs = append(granted.IPs, ip)
		}
	}
	err = s.tokens.record(ctx, n.name, func(m *member) (addresses, []string) {
		return n.proves(granted, m),
			keysOf(m.keys, n.kubelet, n.agent)
	})
	if refused != nil {
		if err != nil {
			a.cfg.Log.Warn("cannot record the addresses of a node", "node", n.name, "error", err)
		}
		return joinwire.Refuse(joinwire.Busy, "%v", refused)
	}
	return err
}

// fill writes down in a Secret that is new what a node has.
func (n *node) fill(s *corev1.Secret) error {
	now, err := n.addresses()
	if err != nil {
		return err
	}
	return put(s, n.proves(now, &member{}), keysOf(nil, n.kubelet, n.agent))
}

// addresses are those of a request that has been checked.
func (n *node) addresses() (out addresses, err error) {
	out.Names = n.names
	for _, l := range []struct {
		from []string
		to   *[]netip.Addr
	}{{n.ips, &out.IPs}, {n.seen, &out.External}} {
		for _, s := range l.from {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return out, err
			}
			if !slices.Contains(*l.to, ip) {
				*l.to = append(*l.to, ip)
			}
		}
	}
	return out, nil
}

// proves adds to the addresses which of them the node asks or has asked from, and which it has had since its first
// record.
func (n *node) proves(a addresses, had *member) addresses {
	a.Proven, a.First = nil, nil
	for _, ip := range slices.Concat(a.IPs, a.External) {
		if (ip == n.from || had.proven(ip)) && !slices.Contains(a.Proven, ip) {
			a.Proven = append(a.Proven, ip)
		}
		if (had.addrs == nil || slices.Contains(had.addrs.First, ip)) && !slices.Contains(a.First, ip) {
			a.First = append(a.First, ip)
		}
	}
	return a
}

func (r *member) holds(a addresses) bool { return r.addrs != nil && r.addrs.equal(a) }

// addressTaken is why a node does not get an address.
type addressTaken struct {
	ip     netip.Addr
	holder string
}

func (e *addressTaken) Error() string {
	return fmt.Sprintf("the address %s is that of node %s, which runs: give this machine another address (node-ip), or delete that node", e.ip, e.holder)
}

// vacant returns the node from which an address can be taken, empty if none has it. The node's Lease has ended, it is
// the same machine under an earlier name, or it has never asked from the address, as the one who wants it does now.
// The error is an *addressTaken if that node lives.
func (a *API) vacant(ctx context.Context, s *serving, n *node, ip netip.Addr) (holder string, err error) {
	holder = a.members.holder(ip)
	if holder == "" || holder == n.name {
		return "", nil
	}
	if rec := s.known.node(holder); rec != nil {
		if m, ok := memberOf(rec); owns(rec, n.password) || ok && !m.server && n.from == ip && !m.proven(ip) {
			return holder, nil
		}
	}
	dead, err := a.dead(ctx, s, holder)
	if err != nil {
		return "", err
	}
	if !dead {
		return "", &addressTaken{ip, holder}
	}
	return holder, nil
}

// vacate takes an address from the node that has registered it, see vacant.
func (a *API) vacate(ctx context.Context, s *serving, n *node, ip netip.Addr) error {
	holder, err := a.vacant(ctx, s, n, ip)
	if err != nil || holder == "" {
		return err
	}
	name := n.name
	err = s.tokens.record(ctx, holder, func(m *member) (addresses, []string) {
		if m.addrs == nil {
			return addresses{}, m.keys
		}
		return m.addrs.without(ip), m.keys
	})
	if err != nil {
		return err
	}
	a.cfg.Log.Warn("an address is another node's now", "address", ip, "node", name, "before", holder)
	a.event(ctx, s, holder, fmt.Sprintf("the address %s is node %s's now; this node registers its own address when it is back", ip, name))
	return nil
}

// dead reports whether a node has not renewed its Lease for so long that its address may be another's.
func (a *API) dead(ctx context.Context, s *serving, name string) (bool, error) {
	lease, err := s.tokens.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		// It has not come yet, or Leases have gone with the memory that they are in when this server was started.
		since := s.since
		if rec := s.known.node(name); rec != nil && rec.CreationTimestamp.After(since) {
			since = rec.CreationTimestamp.Time
		}
		return a.cfg.Now().Sub(since) >= leaseEnded, nil
	case err != nil:
		return false, fmt.Errorf("read the Lease of node %s: %w", name, err)
	case lease.Spec.RenewTime == nil:
		return a.cfg.Now().Sub(lease.CreationTimestamp.Time) >= leaseEnded, nil
	}
	end := lease.Spec.RenewTime.Time
	if d := lease.Spec.LeaseDurationSeconds; d != nil && *d > 0 && *d <= 3600 {
		end = end.Add(time.Duration(*d) * time.Second)
	}
	// A node whose clock is wrong must not keep its address for ever.
	ago := a.cfg.Now().Sub(end)
	return ago >= leaseEnded || ago < -time.Hour, nil
}

func (a *API) event(ctx context.Context, s *serving, node, text string) {
	now := metav1.NewTime(a.cfg.Now())
	_, err := s.tokens.Client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: node + ".", Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node},
		Type:           corev1.EventTypeWarning, Reason: "AddressPassedOn", Message: text,
		Source: corev1.EventSource{Component: "umiak-join"}, FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && ctx.Err() == nil {
		a.cfg.Log.Warn("cannot record an Event", "node", node, "error", err)
	}
}

// record writes what the Secret of a node holds of its addresses and keys, if it is not so already.
func (t Tokens) record(ctx context.Context, node string, next func(*member) (addresses, []string)) error {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		s, err := t.secrets().Get(ctx, node+nodeSuffix, metav1.GetOptions{})
		if err != nil {
			return err
		}
		m, ok := memberOf(s)
		if !ok {
			return errors.New("its Secret is not one of umiak's")
		}
		addrs, keys := next(m)
		if m.holds(addrs) && slices.Equal(m.keys, keys) {
			return nil
		}
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		if err := put(s, addrs, keys); err != nil {
			return err
		}
		_, err = t.secrets().Update(ctx, s, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("record the addresses of node %s: %w", node, err)
	}
	return nil
}

func put(s *corev1.Secret, addrs addresses, keys []string) error {
	raw, err := json.Marshal(addrs)
	if err != nil {
		return err
	}
	s.Data[keyAddresses] = raw
	if len(keys) > 0 {
		if raw, err = json.Marshal(keys); err != nil {
			return err
		}
		s.Data[keyKeys] = raw
	}
	return nil
}

// Foreign returns why an address cannot be a node's: it is another's, a server's, or the cluster's; nil if it can.
func (a *API) Foreign(ctx context.Context, node string, ip netip.Addr) error {
	return a.foreign(ctx, node, ip, a.members.ranges)
}

// System returns why an address cannot be that of a Pod on a node, in a cluster whose pod addresses come from another
// network's IPAM: it is a server's, another node's, a Service's, or not reachable from other machines; nil if it can.
func (a *API) System(ctx context.Context, node string, ip netip.Addr) error {
	return a.foreign(ctx, node, ip, a.cfg.Cluster.ServiceCIDR)
}

// foreign returns why an address belongs to neither a node nor its Pods. ranges are those in which they have none.
func (a *API) foreign(ctx context.Context, node string, ip netip.Addr, ranges []netip.Prefix) error {
	if node == a.members.self {
		return nil
	}
	s := a.ready.Load()
	if s == nil {
		return errors.New("the server is starting, try again")
	}
	if has, _ := a.members.registered(node, ip, false); has {
		return nil
	}
	res, err := a.reserved(ctx, s, node)
	if err != nil {
		return err
	}
	res.ranges = ranges
	if err := res.allows(ip); err != nil {
		return err
	}
	if h := a.members.holder(ip); h != "" && h != node {
		return fmt.Errorf("it is that of node %s", h)
	}
	return nil
}

// Refuse returns the reason why a node may not have an address: it is foreign, or the node has not registered it. An
// external address may be a router's, which others have as well.
func (a *API) Refuse(ctx context.Context, node string, ip netip.Addr, external bool) error {
	if node == a.members.self {
		return nil
	}
	has, recorded := a.members.registered(node, ip, external)
	if has {
		return nil
	}
	if err := a.Foreign(ctx, node, ip); err != nil {
		return err
	}
	if recorded {
		return errors.New("the node has not registered it; its agent does so when it starts with it (node-ip, node-external-ip)")
	}
	return nil
}

// Knows reports whether Admits has the records of nodes: Run has reached the API server.
func (a *API) Knows() bool { return a.members.asks() }

// Admits refuses client certificates of nodes that have been deleted, see Members.
func (a *API) Admits(ctx context.Context, node string, key []byte, local bool) error {
	return a.members.Admits(ctx, node, key, local)
}

// OnLeave has f called when certificates of a node may not count any more, see Members.
func (a *API) OnLeave(f func(node string)) { a.members.OnLeave(f) }

// Disputed reports whether an address that is attributed to a node is another's, see Members.
func (a *API) Disputed(node string, ip netip.Addr) bool { return a.members.Disputed(node, ip) }

// Supported reports whether an address of a node has evidence beside the node's own report, see Members.
func (a *API) Supported(node string, ip netip.Addr) bool { return a.members.Supported(node, ip) }

// Unregistered reports whether a node has not registered an address, see Members.
func (a *API) Unregistered(node string, ip netip.Addr) bool { return a.members.Unregistered(node, ip) }

// AddressesChanged is closed when nodes have other addresses than now.
func (a *API) AddressesChanged() <-chan struct{} { return a.members.Changed() }
