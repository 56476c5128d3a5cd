package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/kubernetes"

	"github.com/umiak-io/umiak/datastore/etcd"
	"github.com/umiak-io/umiak/internal/apiservers"
)

// Peers are the cluster's other servers.
type Peers struct {
	self   string
	client func() (kubernetes.Interface, error)

	mu      sync.Mutex
	addrs   []string
	changed chan struct{}
}

// newPeers returns the peers of the server with the address self, HOST:PORT. Until Run there are none.
func newPeers(self string, client func() (kubernetes.Interface, error)) *Peers {
	return &Peers{self: self, client: client, changed: make(chan struct{})}
}

// List returns the peers' addresses as HOST:PORT, and a channel that is closed when they change.
func (p *Peers) List() ([]string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.addrs), p.changed
}

// Addresses returns the peers' addresses without ports.
func (p *Peers) Addresses() (out []netip.Addr) {
	list, _ := p.List()
	for _, text := range list {
		if ap, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, ap.Addr().Unmap())
		}
	}
	return out
}

// Run follows the servers that the API servers publish. It is ready when it has seen them once; this server is among
// them as soon as it serves.
func (p *Peers) Run(ctx context.Context, ready func()) error {
	client, err := p.client()
	if err != nil {
		return err
	}
	return apiservers.Follow(ctx, client, func(all []string) {
		p.set(all)
		ready()
	})
}

func (p *Peers) set(all []string) {
	all = slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == p.self })
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(all, p.addrs) {
		p.addrs = all
		close(p.changed)
		p.changed = make(chan struct{})
	}
}

// allServe fails while a member of the etcd cluster does not serve: it would continue with the old keys when it is
// back. The servers of an external database are not known; they take the keys over before they serve.
func (p *Peers) allServe(members []etcd.Member) error {
	addrs, _ := p.List()
	serving := map[string]bool{}
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		serving[host] = true
	}
	var away []string
	for _, m := range members {
		if host, _, _ := net.SplitHostPort(m.Peer); !m.Self && !serving[host] {
			away = append(away, cmp.Or(m.Name, m.Peer))
		}
	}
	if len(away) == 0 {
		return nil
	}
	return fmt.Errorf("servers of the cluster do not serve, and would not have the new keys: %s; start them and try again, "+
		"or give them up with `umiak server forget NAME`", strings.Join(away, ", "))
}
