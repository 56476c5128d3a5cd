package advertise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Config describes what a server advertises.
type Config struct {
	// Set is the address in the settings; the zero Addr means the first of the machine's of the family of Services.
	Set netip.Addr
	// Services are the ranges of Services; the family of the first counts.
	Services  []netip.Prefix
	Addresses *nodeip.Tracker
	Port      int
	// Fixed means that the server runs no node: then this package, rather than the node, ends the process when the
	// address changes.
	Fixed bool
	// Names returns the addresses that belong into the API server's certificate.
	Names func() []string
	// Publish puts them there, and gives the API server the new address.
	Publish func(addresses []string) error
}

// Address is where other machines reach this server.
type Address struct {
	cfg       Config
	published []string // what the certificate has
}

// New returns the address of a server whose certificate has the addresses of Config.Names already. It fails for an
// address that others cannot reach; the machine may have none yet.
func New(cfg Config) (*Address, error) {
	now, _ := cfg.Addresses.Now()
	if _, err := Choose(cfg.Set, cfg.Services, now.IPs); err != nil && !errors.Is(err, nodeip.ErrNone) {
		return nil, err
	}
	return &Address{cfg: cfg, published: cfg.Names()}, nil
}

// IP returns the address, "" while the machine has none.
func (a *Address) IP() string {
	now, _ := a.cfg.Addresses.Now()
	ip, err := Choose(a.cfg.Set, a.cfg.Services, now.IPs)
	if err != nil {
		return "" // New has refused addresses that cannot be used
	}
	return ip
}

// HostPort returns the address as HOST:PORT, "" while the machine has none.
func (a *Address) HostPort() string {
	ip := a.IP()
	if ip == "" {
		return ""
	}
	return net.JoinHostPort(ip, strconv.Itoa(a.cfg.Port))
}

// Choose returns set, or the first of the machine's addresses that is of the family of the first range of Services.
func Choose(set netip.Addr, services []netip.Prefix, machine []netip.Addr) (string, error) {
	if set.IsValid() {
		return check("advertise-address", set)
	}
	i := 0
	if len(services) > 0 {
		i = slices.IndexFunc(machine, func(a netip.Addr) bool { return a.Is4() == services[0].Addr().Is4() })
	}
	if i < 0 || len(machine) == 0 {
		return "", nodeip.ErrNone
	}
	return check("node-ip", machine[i])
}

func check(key string, ip netip.Addr) (string, error) {
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return "", fmt.Errorf("%s: pods cannot reach %s; set advertise-address or node-ip to an address of this machine's network", key, ip)
	}
	return ip.String(), nil
}

// Take fixes the machine's address until this process ends: Run ends the process when the machine gets another one.
func Take(t *nodeip.Tracker) error {
	if _, _, err := t.Take(); err != nil && !errors.Is(err, nodeip.ErrNone) {
		return err
	}
	return nil
}

// Run publishes an address that comes late, and makes the process execute itself again when the address differs from
// the one that kubelet, network and etcd have taken at their start.
func (a *Address) Run(ctx context.Context, ready func()) error {
	if a.cfg.Fixed && a.IP() != "" {
		if err := Take(a.cfg.Addresses); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	published := make(chan struct{})
	go func() {
		defer close(published)
		cancel(a.publish(ctx))
	}()
	err := a.cfg.Addresses.Run(ctx, ready)
	cancel(nil)
	<-published // the next run writes the same certificate
	if moved := new(nodeip.Moved); errors.As(err, &moved) {
		return &lifecycle.ReexecError{Part: nodeip.Part, Err: moved}
	}
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// publish publishes each change until ctx ends.
func (a *Address) publish(ctx context.Context) error {
	for {
		_, changed := a.cfg.Addresses.Now()
		if names := a.cfg.Names(); !slices.Equal(names, a.published) {
			if err := a.cfg.Publish(names); err != nil {
				return fmt.Errorf("put the node's address into the API server's certificate: %w", err)
			}
			a.published = names
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
