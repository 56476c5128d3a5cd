package admission

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// TestServices: the attack of a user who may make Services in one namespace (externalIPs of a server, port 6443), its
// siblings by status, port and family, and what goes on to be allowed.
func TestServices(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeInternalIP, Address: "10.93.0.3"}, {Type: corev1.NodeInternalIP, Address: "fd93::3"},
			{Type: corev1.NodeHostName, Address: "n1"}}}}
	type m = []string
	svc := func(external, ingress m, ports ...int32) *api.Service {
		s := &api.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns"},
			Spec: api.ServiceSpec{ExternalIPs: external}} //nolint:staticcheck // what is refused here
		for _, p := range ports {
			s.Spec.Ports = append(s.Spec.Ports, api.ServicePort{Protocol: api.ProtocolTCP, Port: p})
		}
		for _, ip := range ingress {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, api.LoadBalancerIngress{IP: ip})
		}
		return s
	}
	allow := m{"203.0.113.0/24", "10.93.0.0/24", "fd93::/64", "10.42.0.0/15"}
	for _, c := range []struct {
		what     string
		allowed  m
		old, now *api.Service
		refused  string
	}{
		{"a server's API", nil, nil, svc(m{"10.93.0.2"}, nil, 6443), "setting service-external-ips"},
		{"any external IP", nil, nil, svc(m{"203.0.113.7"}, nil, 80), "setting service-external-ips"},
		{"external IP that is allowed", allow, nil, svc(m{"203.0.113.7"}, nil, 6443), ""},
		{"a server's API, allowed range", allow, nil, svc(m{"10.93.0.2"}, nil, 80, 6443),
			"6443/TCP of 10.93.0.2 belongs to the API server"},
		{"a node's kubelet", allow, nil, svc(m{"10.93.0.3"}, nil, 10250), "belongs to the kubelet"},
		{"the same in IPv6", allow, nil, svc(m{"fd93::3"}, nil, 2379), "belongs to etcd"},
		{"another port of a node", allow, nil, svc(m{"10.93.0.3"}, nil, 80), ""},
		{"a Service's address", allow, nil, svc(m{"10.43.0.10"}, nil, 53), "belongs to the cluster's pods or Services"},
		{"unchanged", nil, svc(m{"10.93.0.2"}, nil, 6443), svc(m{"10.93.0.2"}, nil, 6443), ""},
		{"fewer", nil, svc(m{"10.93.0.2", "192.0.2.1"}, nil, 6443), svc(m{"192.0.2.1"}, nil, 6443), ""},
		{"one more", nil, svc(m{"10.93.0.2"}, nil, 6443), svc(m{"10.93.0.2", "192.0.2.1"}, nil, 6443),
			"192.0.2.1 is not in the ranges"},
		{"old address, other port", allow, svc(m{"10.93.0.2"}, nil, 80), svc(m{"10.93.0.2"}, nil, 6443),
			"belongs to the API server"},
		{"balancer at a node", nil, svc(nil, nil, 80), svc(nil, m{"10.93.0.3"}, 80), ""},
		{"balancer at an address of its own", nil, svc(nil, nil, 6443), svc(nil, m{"192.0.2.9"}, 6443), ""},
		{"balancer at a server's API", nil, svc(nil, nil, 6443), svc(nil, m{"10.93.0.2"}, 6443),
			"belongs to the API server"},
		{"balancer that moves to it", nil, svc(nil, m{"10.93.0.2"}, 80), svc(nil, m{"10.93.0.2"}, 6443),
			"belongs to the API server"},
		{"balancer at loopback", nil, svc(nil, nil, 80), svc(nil, m{"127.0.0.1"}, 80), "loopback, unspecified"},
		{"balancer at the node's DNS", nil, svc(nil, nil, 80), svc(nil, m{"169.254.53.53"}, 225),
			"loopback, unspecified"},
		{"balancer at a pod", nil, svc(nil, nil, 80), svc(nil, m{"10.42.1.7"}, 80), "belongs to the cluster's pods"},
		{"none", nil, svc(nil, nil, 6443), svc(nil, nil, 6443), ""},
	} {
		prefixes := func(in m) (out []netip.Prefix) {
			for _, p := range in {
				out = append(out, netip.MustParsePrefix(p))
			}
			return out
		}
		s := NewServices(Limits{ExternalIPs: prefixes(c.allowed), Inside: prefixes(m{"10.42.0.0/16", "10.43.0.0/16"}),
			Servers: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("10.93.0.2")} }})
		f := informers.NewSharedInformerFactory(fake.NewClientset(), 0)
		if err := f.Core().V1().Nodes().Informer().GetStore().Add(node); err != nil {
			t.Fatal(err)
		}
		s.SetExternalKubeInformerFactory(f)
		s.SetReadyFunc(func() bool { return true })
		for _, sub := range []string{"", "status"} {
			op, old := admission.Create, runtime.Object(nil)
			if c.old != nil {
				op, old = admission.Update, c.old
			}
			a := admission.NewAttributesRecord(c.now, old, api.Kind("Service").WithVersion("v1"), "ns", "s",
				api.Resource("services").WithVersion("v1"), sub, op, nil, false, &user.DefaultInfo{Name: "tenant"})
			err := s.Validate(t.Context(), a, nil)
			if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v, want %q", c.what, err, c.refused)
			}
		}
	}
}
