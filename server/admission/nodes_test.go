package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	api "k8s.io/kubernetes/pkg/apis/core"

	"github.com/umiak-io/umiak/internal/overlaykey"
)

// TestNodes: what a node may say of itself, and that others may say more.
func TestNodes(t *testing.T) {
	node := func(change func(*api.Node)) *api.Node {
		n := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		if change != nil {
			change(n)
		}
		return n
	}
	ranges := func(list ...string) *api.Node { return node(func(n *api.Node) { n.Spec.PodCIDRs = list }) }
	images := func(count int) *api.Node {
		return node(func(n *api.Node) {
			i := api.ContainerImage{}
			for k := range count {
				i.Names = append(i.Names, fmt.Sprintf("reg.test/a/%d:1", k))
			}
			n.Status.Images = []api.ContainerImage{i}
		})
	}
	addresses := node(func(n *api.Node) { n.Status.Addresses = make([]api.NodeAddress, 10_000) })
	overwrite := node(func(n *api.Node) { n.Annotations = map[string]string{overlaykey.V4.Overwrite: "192.0.2.1"} })
	const kubelet, agent, admin = "system:nodes", "umiak:agents", "system:masters"
	for _, c := range []struct {
		name     string
		group    string
		old, now *api.Node
		refused  bool
	}{
		{"a new Node", kubelet, nil, node(nil), false},
		{"a range outside", kubelet, nil, ranges("10.93.0.100/32"), true},
		{"a range inside", kubelet, nil, ranges("10.42.2.2/32"), true},
		{"a range by the agent", agent, nil, ranges("10.42.2.0/24"), true},
		{"a range by an administrator", admin, nil, ranges("10.42.2.0/24"), false},
		{"the range that it has", kubelet, ranges("10.42.2.0/24"), ranges("10.42.2.0/24"), false},
		{"another range", kubelet, ranges("10.42.2.0/24"), ranges("10.42.3.0/24"), true},
		{"a second range", kubelet, ranges("10.42.2.0/24"), ranges("10.42.2.0/24", "fd00::/64"), true},
		{"800 images", kubelet, node(nil), images(4000), false},
		{"100,000 images", kubelet, node(nil), images(100_000), true},
		{"fewer than too many images", kubelet, images(100_000), images(99_000), false},
		{"100,000 images by an administrator", admin, node(nil), images(100_000), false},
		{"10,000 addresses", kubelet, node(nil), addresses, true},
		{"an overwritten address", kubelet, node(nil), overwrite, true},
		{"the overwritten address stays", kubelet, overwrite, overwrite, false},
		{"an overwritten address by an administrator", admin, node(nil), overwrite, false},
	} {
		op, sub, old := admission.Create, "", runtime.Object(nil)
		if c.old != nil {
			op, sub, old = admission.Update, "status", c.old
		}
		a := admission.NewAttributesRecord(c.now, old, api.Kind("Node").WithVersion("v1"), "", "n1",
			api.Resource("nodes").WithVersion("v1"), sub, op, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{c.group}})
		if err := NewNodes(free{}).Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}

// free is a network in which node n1 has registered 192.0.2.1 and, as a router's, 198.51.100.1; 192.0.2.2 is
// another's, and 10.43.0.0/16 are Services.
type free struct{}

func (free) Foreign(_ context.Context, _ string, a netip.Addr) error {
	if a.String() == "192.0.2.2" {
		return errors.New("it is that of node n2")
	}
	return nil
}

func (f free) System(ctx context.Context, node string, a netip.Addr) error {
	if netip.MustParsePrefix("10.43.0.0/16").Contains(a) || !a.IsGlobalUnicast() {
		return errors.New("it is the system's")
	}
	return f.Foreign(ctx, node, a)
}

func (f free) Refuse(ctx context.Context, node string, a netip.Addr, external bool) error {
	if a.String() == "192.0.2.1" || external && a.String() == "198.51.100.1" {
		return nil
	}
	return errors.Join(f.Foreign(ctx, node, a), errors.New("not registered"))
}

// RefuseName knows one further name of node n1.
func (free) RefuseName(_, name string) error {
	if name == "n1.example.com" {
		return nil
	}
	return errors.New("not registered")
}

// TestAddressesOfNodes: a node reports the addresses that it has registered and those that it has had, and is reached
// by the overlay at none that is another's.
func TestAddressesOfNodes(t *testing.T) {
	with := func(kind api.NodeAddressType, addrs ...string) *api.Node {
		n := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, api.NodeAddress{Type: kind, Address: a})
		}
		return n
	}
	noted := func(key, v string) *api.Node {
		return &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{key: v}}}
	}
	overwritten := noted(overlaykey.V4.Overwrite, "192.0.2.2")
	both := overwritten.DeepCopy()
	both.Annotations[overlaykey.V4.Public] = "192.0.2.2"
	none := with("")
	for _, c := range []struct {
		name     string
		old, now *api.Node
		refused  bool
	}{
		{"registered", none, with(api.NodeInternalIP, "192.0.2.1"), false},
		{"not registered", none, with(api.NodeInternalIP, "192.0.2.3"), true},
		{"another's", none, with(api.NodeInternalIP, "192.0.2.1", "192.0.2.2"), true},
		{"mapped", none, with(api.NodeInternalIP, "::ffff:192.0.2.2"), true},
		{"no address", none, with(api.NodeInternalIP, "x"), true},
		{"its name", none, with(api.NodeHostName, "n1"), false},
		{"another name", none, with(api.NodeHostName, "n2.example.org"), true},
		{"a registered name as its own", none, with(api.NodeHostName, "n1.example.com"), true},
		{"a registered name", none, with(api.NodeExternalDNS, "n1.example.com"), false},
		{"another name in DNS", none, with(api.NodeExternalDNS, "n2.example.com"), true},
		{"another's as its name", none, with(api.NodeHostName, "192.0.2.2"), true},
		{"loopback as its name in DNS", none, with(api.NodeInternalDNS, "127.0.0.1"), true},
		{"the name that it had", with(api.NodeHostName, "old"), with(api.NodeHostName, "old"), false},
		{"as it was", with(api.NodeInternalIP, "192.0.2.3"), with(api.NodeInternalIP, "192.0.2.3"), false},
		{"as it was, of another kind", with(api.NodeExternalIP, "192.0.2.3"), with(api.NodeInternalIP, "192.0.2.3"),
			true},
		{"a router's", none, with(api.NodeExternalIP, "198.51.100.1"), false},
		{"a router's as its own", none, with(api.NodeInternalIP, "198.51.100.1"), true},
		{"the overlay's", none, noted(overlaykey.V4.Public, "192.0.2.1"), false},
		{"flannel-iface", none, noted(overlaykey.V4.Public, "203.0.113.1"), false},
		{"the overlay's at another's", none, noted(overlaykey.V4.Public, "192.0.2.2"), true},
		{"the overlay's where an administrator says", overwritten, both, false},
	} {
		a := admission.NewAttributesRecord(c.now, c.old, api.Kind("Node").WithVersion("v1"), "", "n1",
			api.Resource("nodes").WithVersion("v1"), "status", admission.Update, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}})
		if err := NewNodes(free{}).Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}

// TestKeysOfNodes: a node has a key of the overlay that no other Node has, however it is written; what it has had
// stays.
func TestKeysOfNodes(t *testing.T) {
	const typ, data, public = "flannel.alpha.coreos.com/backend-type", "flannel.alpha.coreos.com/backend-data", "flannel.alpha.coreos.com/public-ip"
	const wg, wgKey = "wireguard", "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
	f := informers.NewSharedInformerFactory(fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1",
			Annotations: map[string]string{typ: "vxlan", public: "192.0.2.1",
				data: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"}`}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2",
			Annotations: map[string]string{typ: "vxlan", public: "192.0.2.2",
				data: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02"}`}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3",
			Annotations: map[string]string{typ: wg, public: "192.0.2.3", data: `{"PublicKey":"` + wgKey +
				`","Port":51820}`}}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "former",
			Annotations: map[string]string{typ: "vxlan", public: "192.0.2.1",
				data: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:09"}`}}},
	), 0)
	n := NewNodes(free{})
	n.SetExternalKubeInformerFactory(f)
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	node := func(kind, at, text string) *api.Node {
		return &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1",
			Annotations: map[string]string{typ: kind, public: at, data: text}},
			Status: api.NodeStatus{Addresses: []api.NodeAddress{{Type: api.NodeInternalIP, Address: "192.0.2.1"},
				{Type: api.NodeExternalIP, Address: "198.51.100.1"}}}}
	}
	own := node("vxlan", "192.0.2.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:01"}`)
	stolen := node("vxlan", "192.0.2.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02"}`)
	for _, c := range []struct {
		name     string
		old, now *api.Node
		refused  bool
	}{
		{"its own", own, own, false},
		{"another", own, node("vxlan", "192.0.2.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:03"}`), false},
		{"another's", own, stolen, true},
		{"another's, before this was checked", stolen, stolen, false},
		{"another's, with dashes", own, node("vxlan", "192.0.2.1", `{"VNI":1,"VtepMAC":"AA-00-00-00-00-02"}`), true},
		{"another's, with more beside", own, node("vxlan",
			"192.0.2.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02","PublicKey":"x"}`), true},
		{"none", own, node("vxlan", "192.0.2.1", `{}`), true},
		{"another's of WireGuard", own, node(wg, "192.0.2.1", `{"PublicKey":"`+wgKey+`"}`), true},
		{"another's, by the type", node("host-gw", "192.0.2.1", stolen.Annotations[data]), stolen, true},
		{"host-gw", own, node("host-gw", "192.0.2.1", "null"), false},
		{"that of its machine's former Node", own,
			node("vxlan", "192.0.2.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:09"}`), false},
		{"the same, reached elsewhere", own, node("vxlan", "198.51.100.1", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:09"}`),
			true},
		{"nothing any more", own, &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, false},
	} {
		a := admission.NewAttributesRecord(c.now, c.old, api.Kind("Node").WithVersion("v1"), "", "n1",
			api.Resource("nodes").WithVersion("v1"), "", admission.Update, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}})
		c.old.Status = c.now.Status
		if err := n.Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}

// TestProviderIDsOfNodes: a node has a provider ID that no other Node has.
func TestProviderIDsOfNodes(t *testing.T) {
	f := informers.NewSharedInformerFactory(fake.NewClientset(
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{ProviderID: "lab://1"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}, Spec: corev1.NodeSpec{ProviderID: "lab://2"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n3"}, Spec: corev1.NodeSpec{ProviderID: "aws:///zone-a/i-0abc"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n4"}},
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n5"}, Spec: corev1.NodeSpec{ProviderID: "azure:///s/sets/one/vms/0"}},
	), 0)
	n := NewNodes(free{})
	n.SetExternalKubeInformerFactory(f)
	f.Start(t.Context().Done())
	f.WaitForCacheSync(t.Context().Done())
	node := func(id string) *api.Node {
		return &api.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: api.NodeSpec{ProviderID: id}}
	}
	for _, c := range []struct {
		name     string
		old, now *api.Node
		group    string
		refused  bool
	}{
		{"its own", nil, node("lab://1"), "system:nodes", false},
		{"another", nil, node("lab://3"), "system:nodes", false},
		{"none", nil, node(""), "system:nodes", false},
		{"another's", nil, node("lab://2"), "system:nodes", true},
		{"another's in another zone", nil, node("aws:///zone-b/i-0abc"), "system:nodes", true},
		{"another's without a zone", nil, node("aws://i-0abc"), "system:nodes", true},
		{"another's with a slash", nil, node("aws:///zone-a/i-0abc/"), "system:nodes", true},
		{"another's in another case", nil, node("AWS:///zone-a/I-0ABC"), "system:nodes", true},
		{"another's in another subscription", nil, node("azure:///t/Sets/One/VMs/0"), "system:nodes", true},
		{"the number in another scale set", nil, node("azure:///s/sets/two/vms/0"), "system:nodes", false},
		{"another machine in the same zone", nil, node("aws:///zone-a/i-0abcd"), "system:nodes", false},
		{"the same id with another cloud", nil, node("lab:///zone-a/i-0abc"), "system:nodes", false},
		{"another's, later", node(""), node("lab://2"), "system:nodes", true},
		{"another's, before this was checked", node("lab://2"), node("lab://2"), "system:nodes", false},
		{"another's, by an administrator", nil, node("lab://2"), "system:masters", false},
	} {
		op, old := admission.Create, runtime.Object(nil)
		if c.old != nil {
			op, old = admission.Update, c.old
		}
		a := admission.NewAttributesRecord(c.now, old, api.Kind("Node").WithVersion("v1"), "", "n1",
			api.Resource("nodes").WithVersion("v1"), "", op, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{c.group}})
		if err := n.Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}
