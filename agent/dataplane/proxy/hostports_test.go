package proxy

import (
	"log/slog"
	"net/netip"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/sockdiag"
)

func TestHostPorts(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.1")
	h := newHostPorts(Config{NodeIPs: []netip.Addr{node}, Log: slog.New(slog.DiscardHandler)})
	var sockets []sockdiag.Socket
	looked := 0
	h.listen = func() ([]sockdiag.Socket, error) { looked++; return sockets, nil }
	listen := func(addr string, port uint16) {
		sockets = append(sockets, sockdiag.Socket{Protocol: rules.TCP, Addr: netip.MustParseAddr(addr), Port: port})
	}
	own := false
	decide := func() int {
		return h.decide(func(types.NamespacedName, hostPort) bool { return own }).Len()
	}
	lb := func(ports ...int32) *v1.Service {
		s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "lb"},
			Spec: v1.ServiceSpec{Type: v1.ServiceTypeLoadBalancer}}
		for _, p := range ports {
			s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Port: p})
		}
		return s
	}
	nn := types.NamespacedName{Namespace: "ns", Name: "lb"}
	is := func(step, want string, changed, looks int) {
		t.Helper()
		if got := decide(); got != changed || h.said != want || looked != looks {
			t.Errorf("%s: %d changed, %q held, looked %d times; want %d, %q, %d", step, got, h.said, looked, changed,
				want, looks)
		}
	}
	is("nothing is wanted, so nobody looks", "", 0, 0)
	listen("0.0.0.0", 80)
	listen("127.0.0.1", 81)
	h.service(nn, lb(80, 81, 82))
	is("80 is held", "80/TCP", 1, 1)
	if !h.holds(hostPort{v1.ProtocolTCP, 80}, node) ||
		h.holds(hostPort{v1.ProtocolTCP, 80}, netip.MustParseAddr("198.51.100.1")) ||
		h.holds(hostPort{v1.ProtocolTCP, 81}, node) {
		t.Error("holds")
	}
	if h.service(nn, lb(80, 81, 82)) {
		t.Error("the same again is not new")
	}
	is("nothing new", "80/TCP", 0, 1)
	listen("192.0.2.1", 82)
	h.again()
	is("82 is the Service's by now", "80/TCP", 0, 2)
	sockets = nil
	h.again()
	is("the host lets go", "", 1, 3)
	h.again()
	is("nothing is held, so nobody looks", "", 0, 3)
	h.service(nn, nil)
	listen("0.0.0.0", 80)
	is("nobody wants it", "", 0, 3)
	own = true
	h.service(nn, lb(80))
	is("the listener is its own endpoint", "", 0, 4)
	other := lb(80)
	other.Spec.LoadBalancerClass = new(string)
	h.service(nn, other)
	is("somebody else's class", "", 0, 4)
}
