package server

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/umiak-io/umiak/internal/systemports"
	"github.com/umiak-io/umiak/server/servicelb"
)

// ServiceLB is the name by which --disable leaves out the load balancer.
const ServiceLB = "servicelb"

// runLoadBalancer gives Services of type LoadBalancer their addresses.
func (s *Server) runLoadBalancer(ctx context.Context, ready func()) error {
	client, err := s.clients.Client("umiak-load-balancer", 0)
	if err != nil {
		return err
	}
	c, err := servicelb.New(servicelb.Config{
		Client: client, Planner: servicelb.Planner{Pool: s.cfg.LoadBalancers, Reserved: s.reservedPort, Disputed: s.join.Disputed, Supported: s.join.Supported},
		Changed: s.join.AddressesChanged, Disabled: slices.Contains(s.cfg.Disable, ServiceLB), Log: s.log,
	})
	if err != nil {
		return err
	}
	return c.Run(ctx, ready)
}

// reservedPort says what uses a port of the nodes' own addresses, whether or not it listens right now.
func (s *Server) reservedPort(port int32, proto corev1.Protocol) string {
	if s.cfg.NodePorts.Contains(int(port)) {
		return "node ports (service-node-port-range)"
	}
	return systemports.Ports{API: int(s.cfg.HTTPSPort)}.Holder(proto, int(port))
}
