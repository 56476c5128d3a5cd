package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	fcache "k8s.io/client-go/tools/cache/testing"

	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/server/tunnel"
)

var start = time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)

// object is a Node; age orders those that claim the same.
func object(name string, age int, kubelet int32, pods []string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		CreationTimestamp: metav1.NewTime(start.Add(-time.Duration(age) * time.Hour))},
		Spec: corev1.NodeSpec{PodCIDRs: pods}}
	n.Status.DaemonEndpoints.KubeletEndpoint.Port = kubelet
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	return n
}

var clusterRanges = []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/16")}

// following has nodes kept by an informer, as in the API server.
func following(t *testing.T, objects ...*corev1.Node) (*tunnel.Nodes, *fcache.FakeControllerSource) {
	t.Helper()
	src := fcache.NewFakeControllerSource()
	for _, o := range objects {
		src.Add(o)
	}
	informer := cache.NewSharedIndexInformer(src, &corev1.Node{}, 0, nil)
	nodes := tunnel.NewNodes(clusterRanges)
	if err := nodes.Follow(informer); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { informer.Run(stop); close(done) }()
	t.Cleanup(func() { close(stop); <-done })
	if err := nodes.WaitSynced(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	return nodes, src
}

func TestWhoseAnAddressIs(t *testing.T) {
	nodes, src := following(t,
		object("a", 3, 10250, []string{"10.42.1.0/24", "fd42:1::/64"}, "192.0.2.1", "2001:db8::1"),
		object("b", 2, 10251, []string{"10.42.2.0/23"}, "192.0.2.2"),
		object("twin", 1, 10250, nil, "192.0.2.1"),
	)
	check := func(host, want string) {
		t.Helper()
		got := "nobody"
		if p, ok := nodes.Lookup(host); ok {
			got = fmt.Sprint(map[tunnel.Kind]string{tunnel.Host: "host ", tunnel.Pod: "pod "}[p.Kind], p.Node, " ",
				p.Address, " ", p.KubeletPort)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", host, got, want)
		}
	}
	for host, want := range map[string]string{
		"192.0.2.1": "host a 192.0.2.1 10250", "::ffff:192.0.2.1": "host a 192.0.2.1 10250",
		"2001:db8::1": "host a 2001:db8::1 10250",
		"a":           "host a 192.0.2.1 10250", "A": "host a 192.0.2.1 10250", "twin": "host twin 192.0.2.1 10250",
		"b":         "host b 192.0.2.2 10251",
		"10.42.1.9": "pod a 10.42.1.9 0", "10.42.3.9": "pod b 10.42.3.9 0", "fd42:1::9": "pod a fd42:1::9 0",
		"10.42.4.1": "nobody", "192.0.2.3": "nobody", "c": "nobody", "": "nobody", "fe80::1%eth0": "nobody",
	} {
		check(host, want)
	}
	change := func(f func(), host, want string) {
		t.Helper()
		f()
		eventually.Nil(t, "the tunnels", func() error {
			p, ok := nodes.Lookup(host)
			if got := fmt.Sprint(ok, " ", p.Node); got != want {
				return fmt.Errorf("%s: %s, want %s", host, got, want)
			}
			return nil
		})
	}
	// A node moves, one goes and leaves its address to the one that shared it, one comes.
	change(func() { src.Modify(object("b", 2, 10251, []string{"10.42.2.0/23"}, "192.0.2.9")) }, "192.0.2.9", "true b")
	check("192.0.2.2", "nobody")
	change(func() { src.Delete(object("a", 3, 10250, nil)) }, "192.0.2.1", "true twin")
	check("10.42.1.9", "nobody")
	change(func() { src.Add(object("c", 0, 1, []string{"10.42.8.0/21"})) }, "10.42.9.1", "true c")
	check("c", "host c invalid IP 1")
}

// network is what a Dialer's direct connections meet.
type network struct {
	mu    sync.Mutex
	asked []string
	dial  func(ctx context.Context, addr string) (net.Conn, error)
}

func (n *network) Dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.asked = append(n.asked, addr)
	n.mu.Unlock()
	return n.dial(ctx, addr)
}

func (n *network) took() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := strings.Join(n.asked, " ")
	n.asked = nil
	return out
}

func open(context.Context, string) (net.Conn, error) {
	a, b := net.Pipe()
	go echo(b)
	return a, nil
}

func blackhole(ctx context.Context, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func unreachable(context.Context, string) (net.Conn, error) { return nil, errors.New("no route") }

func TestWhichWayAConnectionTakes(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	n := w.node(t, "n1", listen(t, "127.0.0.1:0", echo), nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	kubelet := port(n.kubelet)
	pod := listen(t, podIP+":0", echo)
	var kp int32
	_, _ = fmt.Sscan(kubelet, &kp)
	nodes, _ := following(t,
		object("n1", 3, kp, []string{"10.42.1.0/24"}, "192.0.2.1"),
		object("self", 2, 10250, []string{"10.42.0.0/24"}, "192.0.2.2"),
		object("plain", 1, 10250, []string{"10.42.2.0/24"}, "192.0.2.3"),
	)
	direct := &network{}
	for _, tc := range []struct {
		name, addr string
		dial       func(context.Context, string) (net.Conn, error)
		byTunnel   bool   // PodsByTunnel
		took       string // what was dialed directly
		fails      string
	}{
		{"a kubelet by name", "n1:" + kubelet, blackhole, false, "", ""},
		{"a kubelet by address", "192.0.2.1:" + kubelet, blackhole, false, "", ""},
		{"another port of that node", "192.0.2.1:22", open, false, "192.0.2.1:22", ""},
		{"another port of that node by name", "n1:22", open, false, "192.0.2.1:22", ""},
		{"a kubelet without tunnel", "plain:10250", open, false, "192.0.2.3:10250", ""},
		{"a kubelet without tunnel that is away", "plain:10250", unreachable, false, "192.0.2.3:10250", "no route"},
		{"this server's node", "self:10250", open, true, "192.0.2.2:10250", ""},
		{"a pod here", "10.42.0.5:80", open, true, "10.42.0.5:80", ""},
		{"a pod by the overlay", pod, open, false, pod, ""},
		{"a pod where the overlay leads nowhere", pod, blackhole, false, pod, ""},
		{"a pod where the overlay fails", pod, unreachable, false, pod, ""},
		{"a pod where there is no overlay", pod, blackhole, true, "", ""},
		{"a pod that neither way leads to", "10.42.2.5:80", unreachable, false, "10.42.2.5:80", "no route"},
		{"an address of nobody", "198.51.100.1:443", open, true, "198.51.100.1:443", ""},
		{"a name of nobody", "example.test:443", open, true, "example.test:443", ""},
		{"no port", "n1", open, true, "", "missing port"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			direct.dial = tc.dial
			d := &tunnel.Dialer{Nodes: nodes, Tunnels: s.Tunnels, Self: "self", PodsByTunnel: tc.byTunnel,
				OverlayTimeout: 50 * time.Millisecond, Direct: direct.Dial}
			c, err := d.DialContext(within(t, 5*time.Second), "tcp", tc.addr)
			if took := direct.took(); took != tc.took {
				t.Errorf("directly dialed %q, want %q", took, tc.took)
			}
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			go func() { _, _ = c.Write([]byte("x")) }()
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Error(err)
			}
		})
	}
}

// The second connection to a pod to which the overlay does not lead is not held up by trying it again.
func TestWhatTheOverlayDoesNotReachIsRemembered(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	w.node(t, "n1", "127.0.0.1:1", nil, s.addr)
	wait(t, s, "n1", 5*time.Second)
	pod := listen(t, podIP+":0", echo)
	nodes, _ := following(t, object("n1", 3, 1, []string{"10.42.1.0/24"}, "192.0.2.1"))
	direct := &network{dial: blackhole}
	d := &tunnel.Dialer{Nodes: nodes, Tunnels: s.Tunnels, OverlayTimeout: 20 * time.Millisecond, Direct: direct.Dial}
	for _, took := range []string{pod, "", ""} {
		c, err := d.DialContext(within(t, 5*time.Second), "tcp", pod)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		if got := direct.took(); got != took {
			t.Errorf("directly dialed %q, want %q", got, took)
		}
	}
}

// A kubelet is asked for right after the server has started, before its node has connected.
func TestADialFindsATunnelThatComes(t *testing.T) {
	w := newWorld(t)
	s := w.server(t, "127.0.0.1:0")
	kubelet := listen(t, "127.0.0.1:0", echo)
	var kp int32
	_, _ = fmt.Sscan(port(kubelet), &kp)
	nodes, _ := following(t, object("n1", 3, kp, nil, "192.0.2.1"))
	asked := make(chan struct{})
	d := &tunnel.Dialer{Nodes: nodes, Tunnels: s.Tunnels,
		Direct: func(ctx context.Context, _, _ string) (net.Conn, error) {
			close(asked)
			return blackhole(ctx, "")
		}}
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := d.DialContext(within(t, 10*time.Second), "tcp", "n1:"+port(kubelet))
		done <- result{c, err}
	}()
	<-asked
	w.node(t, "n1", kubelet, nil, s.addr)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	_ = r.c.Close()
}

// A Node whose range lies outside the cluster's, or in an older Node's, gets nothing that is others'; and a Node with
// as many addresses as its object holds is kept with a few.
func TestWhoseAnAddressIsNot(t *testing.T) {
	many := object("many", 9, 10250, nil)
	for i := range 10_000 {
		many.Status.Addresses = append(many.Status.Addresses,
			corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("198.18.%d.%d", i/250, i%250)})
	}
	nodes, _ := following(t, many,
		object("a", 3, 10250, []string{"10.42.1.0/24"}, "192.0.2.1"),
		object("outside", 4, 10250, []string{"192.0.2.0/24"}, "10.42.1.7"),
		object("liar", 1, 10250, []string{"10.42.1.9/32"}, "192.0.2.9"),
		object("wide", 2, 10250, []string{"10.0.0.0/8"}),
	)
	for host, want := range map[string]string{"10.42.1.9": "a", "10.42.1.7": "a", "192.0.2.7": "", "10.9.0.1": "",
		"198.18.0.15": "many", "198.18.0.16": ""} {
		if p, _ := nodes.Lookup(host); p.Node != want {
			t.Errorf("%s is of node %q, want %q", host, p.Node, want)
		}
	}
}

// A Node that says it has another's address gets nothing that goes there, be it the older one.
func TestDisputedAddresses(t *testing.T) {
	for _, age := range []int{1, 9} {
		nodes, _ := following(t, object("victim", 5, 10250, nil, "192.0.2.1"),
			object("a-liar", age, 10250, nil, "192.0.2.1", "192.0.2.2"))
		nodes.Disputed = func(node string, a netip.Addr) bool { return a.String() == "192.0.2.1" && node != "victim" }
		if p, _ := nodes.Lookup("192.0.2.1"); p.Node != "victim" {
			t.Errorf("the address is that of %q", p.Node)
		}
		if p, _ := nodes.Lookup("a-liar"); p.Address.String() != "192.0.2.2" {
			t.Errorf("the liar is reached at %s", p.Address)
		}
	}
}

// What is dialed while the list of nodes is not there yet may be a node's name.
func TestANameWaitsForTheListOfNodes(t *testing.T) {
	nodes := tunnel.NewNodes(clusterRanges)
	src := fcache.NewFakeControllerSource()
	src.Add(object("n1", 1, 10250, nil, "192.0.2.1"))
	informer := cache.NewSharedIndexInformer(src, &corev1.Node{}, 0, nil)
	if err := nodes.Follow(informer); err != nil {
		t.Fatal(err)
	}
	direct := &network{dial: open}
	d := &tunnel.Dialer{Nodes: nodes, Tunnels: tunnel.NewTunnels(tunnel.Identity{}, logger(t)), Self: "n1",
		Direct: direct.Dial}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.DialContext(short, "tcp", "n1:10250"); err == nil || direct.took() != "" {
		t.Errorf("got %v", err)
	}
	// An address does not.
	if c, err := d.DialContext(t.Context(), "tcp", "192.0.2.1:10250"); err != nil ||
		direct.took() != "192.0.2.1:10250" {
		t.Errorf("got %v, %v", c, err)
	}
	stop := make(chan struct{})
	defer close(stop)
	go informer.Run(stop)
	if _, err := d.DialContext(within(t, 10*time.Second), "tcp", "n1:10250"); err != nil ||
		direct.took() != "192.0.2.1:10250" {
		t.Errorf("got %v", err)
	}
}
