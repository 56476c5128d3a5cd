package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/datastore"
	"github.com/umiak-io/umiak/internal/lifecycle"
)

// Addresses finds the node's addresses. A server that others shall reach waits until there is one; one that is alone
// starts without, and publishes it when it comes.
func Addresses(ctx context.Context, cfg Config, log *slog.Logger) (*nodeip.Tracker, error) {
	t, err := nodeip.New(nodeip.Config{Asked: cfg.NodeIP, Want: nodeip.FamiliesOf(cfg.ClusterCIDR), File: cfg.Dirs().Addresses(), Log: log})
	if err != nil {
		return nil, err
	}
	if !cfg.AdvertiseAddress.IsValid() && (cfg.Server != "" || datastore.Shared(cfg.datastoreConfig("", log))) {
		if err := t.Wait(ctx); err != nil {
			return nil, fmt.Errorf("wait for an address at which other servers reach this one: %w", err)
		}
	}
	return t, nil
}

// nodeIPs returns the node's addresses, none while the machine has none.
func (s *Server) nodeIPs() []netip.Addr {
	c, _ := s.addrs.Now()
	return c.IPs
}

// advertise returns where pods and other machines reach the API server, "" while the machine has no address.
func (s *Server) advertise() string { return s.cfg.advertise(s.addrs) }

// advertise returns where pods and other machines reach the API server of a machine with these addresses, "" while it has
// none.
func (c Config) advertise(t *nodeip.Tracker) string {
	now, _ := t.Now()
	a, err := advertiseAddress(c, now.IPs)
	if err != nil {
		return "" // New has refused addresses that cannot be used
	}
	return a
}

// advertiseAddress is what was set, or the first of the node's addresses that is of service-cidr's first family.
func advertiseAddress(cfg Config, nodeIPs []netip.Addr) (string, error) {
	if cfg.AdvertiseAddress.IsValid() {
		return checkAdvertised("advertise-address", cfg.AdvertiseAddress)
	}
	i := 0
	if len(cfg.ServiceCIDR) > 0 {
		i = slices.IndexFunc(nodeIPs, func(a netip.Addr) bool { return a.Is4() == cfg.ServiceCIDR[0].Addr().Is4() })
	}
	if i < 0 || len(nodeIPs) == 0 {
		return "", nodeip.ErrNone
	}
	return checkAdvertised("node-ip", nodeIPs[i])
}

func checkAdvertised(key string, ip netip.Addr) (string, error) {
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return "", fmt.Errorf("%s: pods cannot reach %s; set advertise-address or node-ip to an address of this machine's network", key, ip)
	}
	return ip.String(), nil
}

// takeAddress has this process use the address of now, if there is one, until it ends: followAddresses ends with another.
func (s *Server) takeAddress() error {
	if _, _, err := s.addrs.Take(); err != nil && !errors.Is(err, nodeip.ErrNone) {
		return err
	}
	return nil
}

// followAddresses publishes an address that comes late, and has the process execute itself anew when there is another
// than the one that kubelet, network and etcd have taken at their start.
func (s *Server) followAddresses(ctx context.Context, ready func()) error {
	if s.advertise() != "" && s.cfg.DisableAgent {
		if err := s.takeAddress(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	published := make(chan struct{})
	go func() {
		defer close(published)
		cancel(s.publishAddresses(ctx))
	}()
	err := s.addrs.Run(ctx, ready)
	cancel(nil)
	<-published // the next run has the same certificate in hand
	if moved := new(nodeip.Moved); errors.As(err, &moved) {
		return &lifecycle.Anew{Part: nodeip.Part, Err: moved}
	}
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// publishAddresses puts addresses that come into the serving certificate and into the Service kubernetes.
func (s *Server) publishAddresses(ctx context.Context) error {
	for {
		_, changed := s.addrs.Now()
		if l := s.servingLeaf(); !slices.Equal(l.IPs, s.servingIPs) {
			if err := s.pki.Add(l); err != nil {
				return fmt.Errorf("put the node's address into the API server's certificate: %w", err)
			}
			s.servingIPs = l.IPs
			s.plane.APIServer.AddressChanged()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
