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
	// Self is the name of the node on this machine, which is reached directly; "" if there is none.
	Self string
	// PodsByTunnel is for a server without a node: it has no overlay, so pods are reached through tunnels. Other
	// servers try the overlay first, and the tunnel if the overlay does not answer within OverlayTimeout; such a
	// node's pods are then reached through the tunnel for a while.
	PodsByTunnel bool
	// OverlayTimeout bounds the wait for the overlay before the tunnel is tried; 0 means one second.
	OverlayTimeout time.Duration
	// Direct makes a connection without a tunnel; nil means upstream's default dialer.
	Direct func(ctx context.Context, network, addr string) (net.Conn, error)

	mu sync.Mutex
	// shut maps nodes whose pods were reached through the tunnel and not the overlay to the time until which the tunnel
	// is used at once.
	shut map[string]time.Time
}

// DialerConfig describes how a server reaches nodes and pods.
type DialerConfig struct {
	// Pods are the ranges of pods.
	Pods []netip.Prefix
	// Self is the node on this machine; "" means that there is none, and that no overlay leads to pods.
	Self string
	// Disputed reports whether an address that a node claims is not proven to be that node's.
	Disputed func(node string, a netip.Addr) bool
}

// NewDialer returns a dialer that uses the nodes' tunnels.
func NewDialer(t *Tunnels, cfg DialerConfig) *Dialer {
	nodes := NewNodes(cfg.Pods)
	nodes.Disputed = cfg.Disputed
	return &Dialer{Nodes: nodes, Tunnels: t, Self: cfg.Self, PodsByTunnel: cfg.Self == ""}
}

// shutTime is how long the overlay of a node is not tried again.
const shutTime = time.Minute

// DialContext connects to addr, which may contain a node's name instead of an address.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	p, known := d.Nodes.Lookup(host)
	if _, err := netip.ParseAddr(host); !known && err != nil {
		// The informer may not have synced yet.
		if err := d.Nodes.waitSynced(ctx); err != nil {
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
		// Through a tunnel, nodes allow only their kubelet and their pods.
		return d.direct(ctx, network, plain)
	case kubelet:
		// By name: the node may not know all addresses under which it is known.
		return d.tunnel(ctx, network, p.Node, net.JoinHostPort(p.Node, port), plain)
	case d.PodsByTunnel || d.isShut(p.Node):
		return d.tunnel(ctx, network, p.Node, plain, plain)
	}
	timeout := d.OverlayTimeout
	if timeout == 0 {
		timeout = time.Second
	}
	c, tunnel, err := d.either(ctx, network, p.Node, plain, plain, timeout)
	if tunnel {
		d.mu.Lock()
		if d.shut == nil {
			d.shut = map[string]time.Time{}
		}
		d.shut[p.Node] = time.Now().Add(shutTime)
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
	// Same as net/http's default transport and client-go.
	return (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext(ctx, network, addr)
}

// tunnel connects through the node's tunnel. If the node has none, it connects directly, and uses a tunnel that the
// node opens meanwhile, for example after a restart of this server.
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

// either connects directly and, if that has not finished after delay, also through the node's tunnel as soon as there
// is one. The first connection wins; byTunnel reports which one.
func (d *Dialer) either(ctx context.Context, network, node, through, plain string, delay time.Duration) (c net.Conn,
	byTunnel bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	direct, tunnel := make(chan dialed, 1), make(chan dialed, 1)
	go func() {
		c, err := d.direct(ctx, network, plain)
		direct <- dialed{c, err}
	}()
	hurry := make(chan struct{})
	go func() {
		wait := time.NewTimer(delay)
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

// Follow makes d.Nodes follow the informer of Nodes.
func (d *Dialer) Follow(nodes cache.SharedIndexInformer) error { return d.Nodes.Follow(nodes) }
