package network

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/internal/testing/eventually"
)

// TestPortsAreClosed: from when a node knows the others, it lets them in and nobody else, and follows where they are;
// what a node that is not believed says opens nothing, and a node whose server is away keeps what it has.
func TestPortsAreClosed(t *testing.T) {
	needRoot(t)
	uplink(t, "up3", "192.168.77.1/24")
	node := func(name string, addrs ...string) *v1.Node {
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{},
			CreationTimestamp: metav1.NewTime(time.Unix(int64(len(name)), 0))}}
		for _, a := range addrs {
			n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: a})
		}
		return n
	}
	client := fake.NewClientset(node("n2", "192.168.77.2", "fd77::2"))
	cfg := config(t, VXLAN, client)
	cfg.KubeletPort, cfg.KubeletFrom = 10250, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	cfg.Servers = func() ([]netip.Addr, <-chan struct{}) {
		return []netip.Addr{netip.MustParseAddr("192.168.77.9")}, nil
	}
	_, stop := start(t, cfg)
	ctx := t.Context()
	nodes := client.CoreV1().Nodes()
	listed := func() string {
		out, err := exec.Command("nft", "list", "table", "inet", peerports.Table).CombinedOutput()
		if err != nil {
			return ""
		}
		return string(out)
	}
	has := func(what string, addrs ...string) {
		t.Helper()
		eventually.True(t, what, func() bool {
			out := listed()
			return !slices.ContainsFunc(addrs, func(a string) bool {
				return strings.Contains(out, strings.TrimPrefix(a, "!")) == strings.HasPrefix(a, "!")
			})
		})
	}
	put := func(n *v1.Node, create bool) {
		t.Helper()
		var err error
		if create {
			_, err = nodes.Create(ctx, n, metav1.CreateOptions{})
		} else {
			_, err = nodes.Update(ctx, n, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	own := node("n1", "192.168.77.1")
	own.Spec.PodCIDRs = []string{"10.42.3.0/24"}
	if listed() != "" {
		t.Errorf("closed before the node has registered:\n%s", listed())
	}
	put(own, true)
	has("the peers", "192.168.77.1,", "192.168.77.2,", "fd77::2", "192.168.77.9", "198.51.100.0/24", "10.42.0.0/16",
		"dport 8472", "dport 10250")

	moved := node("n2", "192.168.77.22")
	put(moved, false)
	has("a peer that has moved", "192.168.77.22", "!192.168.77.2,", "!fd77::2")

	// Its overlay is reached elsewhere; another says that of an address that is not its own.
	moved.Annotations = map[string]string{annManaged: "true", annType: "vxlan", annPublicIP: "203.0.113.2",
		annData: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02"}`}
	put(moved, false)
	liar := node("liar", "127.0.0.1", "::", "224.0.0.1", "fe80::1")
	liar.Annotations = map[string]string{annManaged: "true", annType: "vxlan", annPublicIP: "10.42.7.7",
		annData: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:03"}`}
	put(liar, true)
	has("where its overlay is", "203.0.113.2", "192.168.77.22")
	late := node("late", "192.168.77.30")
	put(late, true)
	has("a node after the liar", "192.168.77.30")
	for _, a := range []string{"10.42.7.7", "127.0.0.1", "224.0.0.1", "fe80::1"} {
		if strings.Contains(listed(), a) {
			t.Errorf("%s is let in:\n%s", a, listed())
		}
	}
	// An administrator has told where a node is reached: where it sends from, nobody knows.
	late.Annotations = map[string]string{annOverride: "203.0.113.30"}
	put(late, false)
	has("vxlan to be open", "!dport 8472", "dport 10250")
	if err := nodes.Delete(ctx, "late", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	has("a deleted node to be out", "dport 8472", "!192.168.77.30")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	before := listed()
	// The next start finds no server, then one that does not know the node: both leave it as it is.
	down := fake.NewClientset()
	cfg.Watch, cfg.Self = down, down
	_, stop = start(t, cfg)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if now := listed(); now != before {
		t.Errorf("without a server:\n%s\nbefore:\n%s", now, before)
	}
	// A network of the user's: pods have addresses that nobody has told.
	cfg.Backend, cfg.KubeletFrom, cfg.Watch, cfg.Self = None, nil, client, client
	cfg.Others = nobody{}
	_, stop = start(t, cfg)
	eventually.True(t, "the table to go", func() bool { return listed() == "" })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// nobody is an Observer.
type nobody struct{}

func (nobody) Keep(_, _ *v1.Node) {}
func (nobody) Set(*v1.Node)       {}
func (nobody) Remove(string)      {}
