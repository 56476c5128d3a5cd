package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
)

// Dialer makes the API server's connections to nodes and pods.
type Dialer struct {
	Nodes   *Nodes
	Tunnels *Tunnels
	// Self is the node on this machine, if there is one; it is reached directly.
	Self string
	// PodsByTunnel is for a server without a node of its own: no overlay leads to pods, so the tunnel does.
	// Elsewhere the overlay is tried first, and the tunnel when that does not answer within Patience; a node
	// where that was so is reached by the tunnel at once for a while.
	PodsByTunnel bool
	// Patience is how long the overlay has; 0 means one second.
	Patience time.Duration
	// Direct makes a connection without a tunnel; nil means what upstream's transports do.
	Direct func(ctx context.Context, network, addr string) (net.Conn, error)

	mu sync.Mutex
	// shut holds the nodes to whose pods the overlay has not led and the tunnel has, and until when to go by
	// the tunnel at once.
	shut map[string]time.Time
}

// remembered is how long the overlay is not tried again.
const remembered = time.Minute

// DialContext connects to addr, which may hold the name of a node in place of its address.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	p, known := d.Nodes.Lookup(host)
	if _, err := netip.ParseAddr(host); !known && err != nil {
		// A name that is not known yet may be a node's all the same.
		if err := d.Nodes.WaitSynced(ctx); err != nil {
			return nil, fmt.Errorf("dial %s: wait for the list of nodes: %w", addr, err)
		}
		p, known = d.Nodes.Lookup(host)
	}
	if !known {
		return d.direct(ctx, network, addr)
	}
	plain, kubelet := addr, p.Kind == Host && port == strconv.Itoa(int(p.KubeletPort))
	if p.Address.IsValid() {
		plain = net.JoinHostPort(p.Address.String(), port)
	}
	switch {
	case p.Node == d.Self || p.Kind == Host && !kubelet:
		// Nodes let servers reach their kubelet and their pods, and nothing else that listens there.
		return d.direct(ctx, network, plain)
	case kubelet:
		// By its name: the node knows that better than which addresses it is known by.
		return d.tunnel(ctx, network, p.Node, net.JoinHostPort(p.Node, port), plain)
	case d.PodsByTunnel || d.isShut(p.Node):
		return d.tunnel(ctx, network, p.Node, plain, plain)
	}
	patience := d.Patience
	if patience == 0 {
		patience = time.Second
	}
	c, tunnel, err := d.either(ctx, network, p.Node, plain, plain, patience)
	if tunnel {
		d.mu.Lock()
		if d.shut == nil {
			d.shut = map[string]time.Time{}
		}
		d.shut[p.Node] = time.Now().Add(remembered)
		d.mu.Unlock()
	}
	return c, err
}

func (d *Dialer) isShut(node string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	until, ok := d.shut[node]
	if ok && time.Now().After(until) {
		delete(d.shut, node)
		ok = false
	}
	return ok
}

func (d *Dialer) direct(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.Direct != nil {
		return d.Direct(ctx, network, addr)
	}
	// As net/http's default transport and client-go do.
	return (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, addr)
}

// tunnel goes through the node's tunnel. A node that has none is tried directly; if it connects while that
// is under way, as after a restart of this server, its tunnel is used.
func (d *Dialer) tunnel(ctx context.Context, network, node, through, plain string) (net.Conn, error) {
	c, err := d.Tunnels.Dial(ctx, node, through)
	if !errors.Is(err, ErrNoTunnel) {
		return c, err
	}
	c, _, err = d.either(ctx, network, node, through, plain, 0)
	return c, err
}

type dialed struct {
	conn net.Conn
	err  error
}

// either connects directly and, when that has not come to an end after patience, by the node's tunnel as
// well, as soon as there is one. What is there first wins, and byTunnel says which that was.
func (d *Dialer) either(ctx context.Context, network, node, through, plain string, patience time.Duration) (c net.Conn, byTunnel bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	direct, tunnel := make(chan dialed, 1), make(chan dialed, 1)
	go func() {
		c, err := d.direct(ctx, network, plain)
		direct <- dialed{c, err}
	}()
	hurry := make(chan struct{})
	go func() {
		wait := time.NewTimer(patience)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-hurry:
		case <-ctx.Done():
		}
		err := d.Tunnels.Wait(ctx, node)
		if err != nil {
			tunnel <- dialed{nil, err}
			return
		}
		c, err := d.Tunnels.Dial(ctx, node, through)
		tunnel <- dialed{c, err}
	}()
	select {
	case first := <-direct:
		if first.err == nil || !d.Tunnels.Connected(node) {
			go discard(tunnel)
			return first.conn, false, first.err
		}
		close(hurry)
		second := <-tunnel
		if second.err != nil {
			return nil, false, errors.Join(first.err, second.err)
		}
		return second.conn, true, nil
	case first := <-tunnel:
		if first.err == nil {
			go discard(direct)
			return first.conn, true, nil
		}
		second := <-direct
		if second.err != nil {
			return nil, false, errors.Join(second.err, first.err)
		}
		return second.conn, false, nil
	}
}

func discard(c <-chan dialed) {
	if late := <-c; late.conn != nil {
		_ = late.conn.Close()
	}
}

// Follow keeps to what the informer of Nodes says.
func (d *Dialer) Follow(nodes cache.SharedIndexInformer) error { return d.Nodes.Follow(nodes) }
