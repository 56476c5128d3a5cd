package dnsendpoints

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/umiak-io/umiak/internal/testing/eventually"
)

func node(name string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	return n
}

// text is what a proxy reads of EndpointSlices.
func text(list []discoveryv1.EndpointSlice) string {
	var out []string
	for _, s := range list {
		for _, e := range s.Endpoints {
			out = append(out, fmt.Sprintf("%s %s %v %d", s.Name, *e.NodeName, e.Addresses, *s.Ports[0].Port))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func TestPlan(t *testing.T) {
	external := node("out")
	external.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}}
	nodes := []*corev1.Node{node("b", "192.0.2.2", "192.0.2.3", "fd00::2"), node("a", "fe80::1", "192.0.2.1"), node("new"),
		node("odd", "169.254.1.1", "127.0.0.1", "x"), external}
	both := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}
	want := "kube-dns-nodes-ipv4-0 a [192.0.2.1] 225\nkube-dns-nodes-ipv4-0 b [192.0.2.2] 225\n" +
		"kube-dns-nodes-ipv6-0 b [fd00::2] 225"
	if got := text(plan(nodes, both)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := plan(nodes, both[1:]); len(got) != 1 || got[0].AddressType != discoveryv1.AddressTypeIPv6 {
		t.Errorf("%+v", got)
	}
	var many []*corev1.Node
	for i := range maxEndpoints + 1 {
		many = append(many, node(fmt.Sprintf("n%04d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)))
	}
	if got := plan(many, both); len(got) != 2 || len(got[0].Endpoints) != maxEndpoints || len(got[1].Endpoints) != 1 {
		t.Errorf("%d nodes make %d EndpointSlices", len(many), len(got))
	}
}

// TestController follows nodes, repairs its EndpointSlices, and deletes them where it is off.
func TestController(t *testing.T) {
	client := fake.NewClientset(node("a", "192.0.2.1"))
	controller := func(off bool) *Controller {
		return New(Config{Client: func() (kubernetes.Interface, error) { return client, nil }, Off: off,
			ClusterDNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}, Log: slog.New(slog.DiscardHandler)})
	}
	run := func(c *Controller) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx, func() {}) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	}
	api := client.DiscoveryV1().EndpointSlices(namespace)
	becomes := func(what, want string) {
		t.Helper()
		eventually.Nil(t, what, func() error {
			l, err := api.List(t.Context(), metav1.ListOptions{LabelSelector: selector})
			if err != nil {
				return err
			}
			if got := text(l.Items); got != want {
				return fmt.Errorf("want %s, got %s", want, got)
			}
			return nil
		})
	}
	stop := run(controller(false))
	becomes("at first", "kube-dns-nodes-ipv4-0 a [192.0.2.1] 225")
	if _, err := client.CoreV1().Nodes().Create(t.Context(), node("b", "192.0.2.2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	const two = "kube-dns-nodes-ipv4-0 a [192.0.2.1] 225\nkube-dns-nodes-ipv4-0 b [192.0.2.2] 225"
	becomes("a second node", two)
	if err := api.Delete(t.Context(), "kube-dns-nodes-ipv4-0", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	becomes("after a stranger deleted it", two)
	stop()
	if err := client.CoreV1().Nodes().Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	stop = run(controller(false))
	becomes("after a restart", "kube-dns-nodes-ipv4-0 a [192.0.2.1] 225")
	stop()
	// Another server leads now, and the setting is off.
	stop = run(controller(true))
	becomes("off", "")
	stop()
}

// TestOff deletes once in each term of a leader, also in the second term of one process, and does not repeat it.
func TestOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		lists, deletes := 0, 0
		client.PrependReactor("*", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
			switch a.GetVerb() {
			case "list":
				lists++
			case "delete":
				deletes++
			}
			return false, nil, nil
		})
		c := New(Config{Client: func() (kubernetes.Interface, error) { return client, nil }, Off: true,
			Log: slog.New(slog.DiscardHandler)})
		for term := 1; term <= 2; term++ {
			slice := slice(discoveryv1.AddressTypeIPv4, 0, nil)
			if _, err := client.DiscoveryV1().EndpointSlices(namespace).Create(t.Context(), &slice,
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // of the synthetic clock
			if err := c.Run(ctx, func() {}); err != nil {
				t.Error(err)
			}
			cancel()
			if lists != term || deletes != term {
				t.Errorf("term %d: %d lists and %d deletions in all", term, lists, deletes)
			}
		}
	})
}
