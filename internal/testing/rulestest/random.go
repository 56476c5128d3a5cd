// Package rulestest generates random Service ports for tests of the service proxy.
package rulestest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
)

// Random returns a Service port with the number n and random values of everything that a Service may have. There are
// few addresses, so that Services with different numbers sometimes conflict.
func Random(r *rand.Rand, f rules.Family, n int) rules.ServicePort {
	addr := func(net, max int) netip.Addr {
		if f == rules.IPv6 {
			return netip.MustParseAddr(fmt.Sprintf("fd%02d::%x", net, r.IntN(max)+1))
		}
		return netip.AddrFrom4([4]byte{10, byte(net), 0, byte(r.IntN(max) + 1)})
	}
	eps := func(max int) (out []netip.AddrPort) {
		for range r.IntN(max) {
			out = append(out, netip.AddrPortFrom(addr(42, 100), uint16(8080+r.IntN(2))))
		}
		return out
	}
	addrs := func(net, max int) (out []netip.Addr) {
		for range r.IntN(max) {
			out = append(out, addr(net, 20))
		}
		return out
	}
	yes := func(of int) bool { return r.IntN(of) == 0 }
	s := rules.ServicePort{
		Name: fmt.Sprintf("ns/svc-%d:p", n), Service: fmt.Sprintf("ns/svc-%d", n/2),
		Protocol:  []uint8{rules.TCP, rules.UDP, rules.SCTP}[r.IntN(3)],
		ClusterIP: addr(43, 60), Port: uint16(80 + r.IntN(3)),
		Cluster: eps(6), InternalLocal: yes(5), ExternalLocal: yes(3), Anywhere: yes(3),
	}
	for _, e := range s.Cluster {
		if yes(2) {
			s.Local = append(s.Local, e)
			s.Hairpin = append(s.Hairpin, e.Addr())
		}
	}
	if yes(2) {
		s.NodePort = uint16(30000 + r.IntN(40))
	}
	if yes(3) {
		s.ExternalIPs = addrs(98, 3)
	}
	if yes(3) {
		s.LoadBalancerIPs = addrs(99, 3)
		for range r.IntN(4) {
			a := addr(7, 200)
			p, _ := a.Prefix(a.BitLen() - r.IntN(9))
			s.SourceRanges = append(s.SourceRanges, p)
		}
	}
	if yes(4) {
		s.Affinity = uint32(10 + r.IntN(2)*3590)
	}
	return s
}
