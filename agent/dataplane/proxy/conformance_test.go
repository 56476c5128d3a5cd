package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/internal/testing/nettest"
)

type nn = types.NamespacedName

// TestConformance takes Services and slices as the API server has them, and says of each case who answers
// a real packet and which source they see.
func TestConformance(t *testing.T) {
	l := newLab(t)
	s := l.serve()
	const vip, node = "10.43.8.1:80", "203.0.113.1"
	const aSeesNode, bSeesNode, remoteSeesNode = "a " + labGateway, "b " + labGateway, "remote " + node
	nodePort := func(s *v1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = v1.ServiceTypeNodePort, 30080 }
	external := func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal }
	internal := func(s *v1.Service) {
		local := v1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	prefer := func(how string) func(*v1.Service) {
		return func(s *v1.Service) { s.Spec.TrafficDistribution = &how }
	}
	type ask struct {
		from *nettest.Host
		to   string
		want []string
	}
	eps := func(what ...string) any { return labSlice("s", v1.ProtocolTCP, 8080, what...) }
	for _, c := range []struct {
		name string
		zone string
		objs []any
		asks []ask
	}{
		{"cluster IP", "", []any{labService("s", "10.43.8.1"), eps("a", "remote")}, []ask{
			{l.client, vip, []string{aSeesNode, remoteSeesNode}},
			{l.b, vip, []string{"a " + labPods["b"], "remote " + labPods["b"]}},
			{l.node, vip, []string{aSeesNode, remoteSeesNode}}, {l.client, "10.43.8.1:81", []string{"refused"}}}},
		{"named target ports that differ", "", []any{labService("s", "10.43.8.1"),
			eps("a"), labSlice("s", v1.ProtocolTCP, 8081, "b")}, []ask{
			{l.client, vip, []string{aSeesNode, bSeesNode}}}},
		{"not ready", "", []any{labService("s", "10.43.8.1"), eps("a notready")},
			[]ask{{l.client, vip, []string{"refused"}}, {l.a, vip, []string{"refused"}}}},
		{"publishNotReadyAddresses", "",
			[]any{labService("s", "10.43.8.1", func(s *v1.Service) { s.Spec.PublishNotReadyAddresses = true }),
				eps("a published")}, []ask{
				{l.client, vip, []string{aSeesNode}}}},
		{"no selector, endpoints by hand", "", []any{labService("s", "10.43.8.1", nodePort), eps("a nonode")}, []ask{
			{l.client, vip, []string{aSeesNode}}, {l.a, vip, []string{aSeesNode}},
			{l.client, node + ":30080", []string{aSeesNode}}}},
		{"terminating, another is ready", "", []any{labService("s", "10.43.8.1"), eps("a", "b terminating")},
			[]ask{{l.client, vip, []string{aSeesNode}}}},
		{"terminating, none is ready", "", []any{labService("s", "10.43.8.1"), eps("a notready", "b terminating")},
			[]ask{{l.client, vip, []string{bSeesNode}}}},
		{"terminated", "", []any{labService("s", "10.43.8.1"), eps("a stopped")},
			[]ask{{l.client, vip, []string{"refused"}}}},
		{"policy Local, the local one terminates", "",
			[]any{labService("s", "10.43.8.1", nodePort, external), eps("a terminating", "remote")}, []ask{
				{l.client, node + ":30080", []string{"a " + labClient}}, {l.client, vip, []string{remoteSeesNode}}}},
		{"policy Local, the local one has stopped", "",
			[]any{labService("s", "10.43.8.1", nodePort, external), eps("a stopped", "remote")}, []ask{
				{l.client, node + ":30080", []string{"silence"}},
				{l.b, node + ":30080", []string{"remote " + labPods["b"]}}}},
		{"internal policy Local", "", []any{labService("s", "10.43.8.1", internal), eps("a", "remote")},
			[]ask{{l.b, vip, []string{"a " + labPods["b"]}}, {l.a, vip, []string{aSeesNode}}}},
		{"zone hints", "z1", []any{labService("s", "10.43.8.1", prefer(v1.ServiceTrafficDistributionPreferClose)),
			eps("a zone=z1", "b zone=z2")}, []ask{{l.client, vip, []string{aSeesNode}}}},
		{"zone hints, our zone has none", "z3", []any{labService("s", "10.43.8.1"), eps("a zone=z1", "b zone=z2")},
			[]ask{{l.client, vip, []string{aSeesNode, bSeesNode}}}},
		{"zone hints, our zone unknown", "", []any{labService("s", "10.43.8.1"), eps("a zone=z1", "b zone=z2")},
			[]ask{{l.client, vip, []string{aSeesNode, bSeesNode}}}},
		{"zone hints, one has none", "z1", []any{labService("s", "10.43.8.1"), eps("a zone=z1", "b")},
			[]ask{{l.client, vip, []string{aSeesNode, bSeesNode}}}},
		{"zone hints, ours is not ready", "z1", []any{labService("s", "10.43.8.1"),
			eps("a zone=z1 notready", "b zone=z2")}, []ask{{l.client, vip, []string{bSeesNode}}}},
		{"node hints", "z1", []any{labService("s", "10.43.8.1", prefer(v1.ServiceTrafficDistributionPreferSameNode)),
			eps("a zone=z1 node=node", "remote zone=z1 node=other")}, []ask{{l.client, vip, []string{aSeesNode}}}},
		{"two ports", "", []any{labService("s", "10.43.8.1", func(s *v1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: "q", Port: 81, Protocol: v1.ProtocolTCP})
		}), eps("a")}, []ask{{l.client, vip, []string{aSeesNode}}, {l.client, "10.43.8.1:81", []string{"refused"}}}},
		{"LoadBalancer, Proxy mode is not ours to answer", "", []any{labService("s", "10.43.8.1", func(s *v1.Service) {
			s.Spec.Type = v1.ServiceTypeLoadBalancer
			vip, proxy := v1.LoadBalancerIPModeVIP, v1.LoadBalancerIPModeProxy
			s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "10.43.8.98", IPMode: &vip},
				{IP: "10.43.8.99", IPMode: &proxy}}
		}), eps("a")}, []ask{{l.client, "10.43.8.98:80", []string{aSeesNode}},
			{l.node, "10.43.8.98:80", []string{aSeesNode}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.TB = t
			delete(s.node.topology, v1.LabelTopologyZone)
			if c.zone != "" {
				s.node.topology[v1.LabelTopologyZone] = c.zone
			}
			s.set(c.objs...)
			for _, a := range c.asks {
				l.expect(a.from, "tcp", a.to, a.want...)
			}
		})
	}
	for name, svc := range map[string]*v1.Service{
		"ExternalName": labService("s", "", func(s *v1.Service) {
			s.Spec.Type,
				s.Spec.ExternalName = v1.ServiceTypeExternalName, "example.org"
		}),
		"headless": labService("s", v1.ClusterIPNone),
	} {
		t.Run(name+" needs no rule", func(t *testing.T) {
			l.TB = t
			s.set(svc, eps("a"))
			if n := s.f.builder.Len(); n != 0 {
				t.Errorf("%d ports are in the rules", n)
			}
		})
	}
	t.Run("addresses change hands in one update", func(t *testing.T) {
		l.TB = t
		two := labSlice("t", v1.ProtocolTCP, 8080, "b")
		s.set(labService("s", "10.43.8.1"), labService("t", "10.43.8.2"), eps("a"), two)
		l.expect(l.client, "tcp", vip, aSeesNode)
		s.set(labService("s", "10.43.8.2"), labService("t", "10.43.8.1"), eps("a"), two)
		l.expect(l.client, "tcp", vip, bSeesNode)
		l.expect(l.client, "tcp", "10.43.8.2:80", aSeesNode)
		// The old owner goes in the same update in which the new one comes.
		s.set(labService("u", "10.43.8.1"), labSlice("u", v1.ProtocolTCP, 8080, "a"))
		l.expect(l.client, "tcp", vip, aSeesNode)
	})
	t.Run("UDP follows its endpoints", func(t *testing.T) {
		l.TB = t
		// One socket all the time: the kernel knows its flow.
		var conn net.Conn
		var err error
		l.client.Do(func() { conn, err = net.Dial("udp", vip) })
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		say := func(want string) {
			t.Helper()
			var got string
			for range 20 {
				_, _ = conn.Write([]byte("?"))
				_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				b := make([]byte, 50)
				n, err := conn.Read(b)
				if got = string(b[:n]); err != nil {
					got = err.Error()
					if strings.Contains(got, "refused") {
						got = "refused"
					}
				}
				if got == want {
					return
				}
			}
			t.Errorf("got %q, want %q", got, want)
		}
		svc := labService("s", "10.43.8.1", udp)
		us := func(what ...string) any { return labSlice("s", v1.ProtocolUDP, 8080, what...) }
		s.set(svc, us())
		say("refused")
		s.set(svc, us("a"))
		say(aSeesNode)
		s.set(svc, us("b"))
		say(bSeesNode)
		s.set(svc, us("b terminating", "a"))
		say(bSeesNode) // what has begun goes on while the endpoint serves, as a TCP connection does
		s.set(svc, us("b stopped", "a"))
		say(aSeesNode)
		s.set(svc, us())
		say("refused")
		s.set()
		s.set(svc, us("b"))
		say(bSeesNode)
		s.set(labService("t", "10.43.8.1", udp), labSlice("t", v1.ProtocolUDP, 8080, "a"))
		say(aSeesNode)
	})
	t.Run("SCTP", func(t *testing.T) {
		l.TB = t
		svc := labService("s", "10.43.8.1", nodePort,
			func(s *v1.Service) { s.Spec.Ports[0].Protocol = v1.ProtocolSCTP })
		s.set(svc, labSlice("s", v1.ProtocolSCTP, 8080, "a"))
		for _, c := range []struct {
			from *nettest.Host
			to   string
			sees string // the source that the pod sees; empty: nothing comes
		}{
			{l.client, vip, labGateway}, {l.b, vip, labPods["b"]}, {l.node, vip, labGateway}, {l.a, vip, labGateway},
			{l.client, node + ":30080", labGateway}, {l.client, "10.43.8.1:81", ""}, {l.client, node + ":30081", ""},
		} {
			got, ok := c.from.SCTP(t, netip.MustParseAddrPort(c.to), nettest.SCTPInit, l.a)
			if ok != (c.sees != "") || ok && (got.From.String() != c.sees || got.Port != 8080) {
				t.Errorf("%s %s: %v %+v, want it to come from %q", c.from.Name, c.to, ok, got, c.sees)
			}
		}
		l.expect(l.client, "tcp", vip, "refused") // the same port of another protocol
		s.set(svc, labSlice("s", v1.ProtocolSCTP, 8080, "b"))
		if got, ok := l.client.SCTP(t, netip.MustParseAddrPort(vip), nettest.SCTPInit, l.b); !ok || got.Port != 8080 {
			t.Errorf("after a change of endpoints: %v %+v", ok, got)
		}
	})
	t.Run("a program of the host keeps its port", func(t *testing.T) {
		l.TB = t
		const at = "203.0.113.1:9000"
		var stop func()
		l.node.Do(func() {
			stop = nettest.ServeTCP(t, ":9000", func(c net.Conn) {
				fmt.Fprintf(c, "host %s", strings.Split(c.RemoteAddr().String(), ":")[0])
			})
		})
		lb := labService("s", "10.43.8.1", func(s *v1.Service) {
			vip := v1.LoadBalancerIPModeVIP
			s.Spec.Type, s.Spec.Ports[0].Port = v1.ServiceTypeLoadBalancer, 9000
			s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: labNode.String(), IPMode: &vip}}
		})
		decide := func() {
			s.f.rebuild(s.node.host.decide(func(n nn,
				p hostPort) bool {
				return s.f.servesItself(n, p, s.node.host.addrs)
			}), s.node)
			s.sync(true)
		}
		s.node.host.service(nn{Namespace: "default", Name: "s"}, lb)
		s.node.host.decide(func(nn, hostPort) bool { return false })
		s.set(lb, eps("a"))
		l.expect(l.client, "tcp", at, "host "+labClient)
		l.expect(l.client, "tcp", "10.43.8.1:9000", aSeesNode)
		stop()
		s.node.host.again()
		decide()
		l.expect(l.client, "tcp", at, aSeesNode)
	})
}
