package admission

import (
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	api "k8s.io/kubernetes/pkg/apis/core"
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
	overwrite := node(func(n *api.Node) { n.Annotations = map[string]string{overwrites[0]: "192.0.2.1"} })
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
		a := admission.NewAttributesRecord(c.now, old, api.Kind("Node").WithVersion("v1"), "", "n1", api.Resource("nodes").WithVersion("v1"), sub, op, nil, false,
			&user.DefaultInfo{Name: "system:node:n1", Groups: []string{c.group}})
		if err := NewNodes().Validate(t.Context(), a, nil); (err != nil) != c.refused {
			t.Errorf("%s: %v, refused is to be %v", c.name, err, c.refused)
		}
	}
}
