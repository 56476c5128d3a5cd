package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// TestAddressesOfPods covers the addresses that a kubelet reports for its Pods, with umiak's network and with another
// one.
func TestAddressesOfPods(t *testing.T) {
	node := func(name string, ranges ...string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: ranges}}
	}
	known := node("n1", "10.42.1.0/24", "fd00:42:1::/64")
	known.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.9"},
		{Type: corev1.NodeHostName, Address: "192.0.2.8"}}
	f := informers.NewSharedInformerFactory(fake.NewClientset(known, node("fresh")), 0)
	plugins := map[bool]*Kubelets{false: NewKubelets(free{}, false), true: NewKubelets(free{}, true)}
	for _, k := range plugins {
		k.SetExternalKubeInformerFactory(f)
		k.SetExternalKubeClientSet(fake.NewClientset(node("fresh", "10.42.7.0/24"))) // the cache is a moment behind
	}
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())

	pod := func(hostNetwork bool, host string, ips ...string) *api.Pod {
		p := &api.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"},
			Spec: api.PodSpec{HostNetwork: hostNetwork}}
		p.Status.HostIP = host
		if host != "" {
			p.Status.HostIPs = []api.HostIP{{IP: host}}
		}
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, api.PodIP{IP: ip})
		}
		return p
	}
	const n1, kubelets = "n1", "system:nodes"
	fresh, host, stale := pod(false, ""), pod(true, ""), pod(false, "192.0.2.2", "10.42.9.9")
	for _, c := range []struct {
		name           string
		old, now       *api.Pod
		refused, other bool // with umiak's network; with another one
		node, group    string
	}{
		{"no address yet", fresh, pod(false, ""), false, false, n1, kubelets},
		{"of the node's range", fresh, pod(false, "192.0.2.1", "10.42.1.7"), false, false, n1, kubelets},
		{"of both families", fresh, pod(false, "192.0.2.1", "10.42.1.7", "fd00:42:1::7"), false, false, n1, kubelets},
		{"of another node's range", fresh, pod(false, "192.0.2.1", "10.42.2.7"), true, false, n1, kubelets},
		{"another's as the second one", fresh, pod(false, "192.0.2.1", "10.42.1.7", "fd00:42:2::7"), true, false, n1,
			kubelets},
		{"mapped", fresh, pod(false, "192.0.2.1", "::ffff:10.42.2.7"), true, false, n1, kubelets},
		{"of the LAN", fresh, pod(false, "192.0.2.1", "203.0.113.7"), true, false, n1, kubelets},
		{"another node's", fresh, pod(false, "192.0.2.1", "192.0.2.2"), true, true, n1, kubelets},
		{"a Service's", fresh, pod(false, "192.0.2.1", "10.43.0.10"), true, true, n1, kubelets},
		{"loopback", fresh, pod(false, "192.0.2.1", "127.0.0.1"), true, true, n1, kubelets},
		{"of the cloud's metadata", fresh, pod(false, "192.0.2.1", "169.254.169.254"), true, true, n1, kubelets},
		{"none at all", fresh, pod(false, "192.0.2.1", "x"), true, true, n1, kubelets},
		{"a host's, registered", host, pod(true, "192.0.2.1", "192.0.2.1"), false, false, n1, kubelets},
		{"a host's, in the Node's status", host, pod(true, "192.0.2.9", "192.0.2.9"), false, false, n1, kubelets},
		{"a host's, in the Node's status as a name", host, pod(true, "192.0.2.1", "192.0.2.8"), true, true, n1,
			kubelets},
		{"a host's, another's", host, pod(true, "192.0.2.1", "192.0.2.2"), true, true, n1, kubelets},
		{"a host's, that of a Pod", host, pod(true, "192.0.2.1", "10.42.1.7"), true, true, n1, kubelets},
		{"of another host", fresh, pod(false, "192.0.2.2", "10.42.1.7"), true, true, n1, kubelets},
		{"as it was", stale, stale, false, false, n1, kubelets},
		{"as it was, and one more", stale, pod(false, "192.0.2.2", "10.42.9.9", "fd00:42:2::7"), true, false, n1,
			kubelets},
		{"a node that has just got its range", fresh, pod(false, "", "10.42.7.1"), false, false, "fresh", kubelets},
		{"a node that is none", fresh, pod(false, "", "10.42.1.7"), true, true, "none", kubelets},
		{"a controller", fresh, pod(false, "", "10.42.2.7"), false, false, n1, "system:serviceaccounts"},
	} {
		for otherIPAM, k := range plugins {
			want := c.refused
			if otherIPAM {
				want = c.other
			}
			a := admission.NewAttributesRecord(c.now, c.old, api.Kind("Pod").WithVersion("v1"), "a", "p",
				api.Resource("pods").WithVersion("v1"), "status", admission.Update, nil, false,
				&user.DefaultInfo{Name: "system:node:" + c.node, Groups: []string{c.group}})
			if err := k.Validate(t.Context(), a, nil); (err != nil) != want {
				t.Errorf("%s, another network is %v: %v, refused is to be %v", c.name, otherIPAM, err, want)
			}
		}
	}
}
