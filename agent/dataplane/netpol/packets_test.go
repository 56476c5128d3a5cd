package netpol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	stdruntime "runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/umiak-io/umiak/agent/dataplane/netpol/announce"
	"github.com/umiak-io/umiak/internal/testing/nettest"
)

// world is a node with pods on it, a pod on another node, and a client outside of the cluster, with real
// packets between them; the API server is a fake.
//
//	shop/web    10.42.0.11  app=web, port http = 8080
//	shop/db     10.42.0.12  app=db, port http = 8081
//	other/job   10.42.0.13  app=job, in a namespace team=red
//	shop/far    10.42.1.21  app=far, on another node
//	client      192.0.2.2
type world struct {
	t              *testing.T
	v6             bool
	node           *nettest.Host
	hosts          map[string]*nettest.Host
	addrs          map[string]netip.Addr
	client         kubernetes.Interface
	policies       *Policies
	socket         string
	stop           func()
	lastGeneration int64
	nodeNS         int    // the node's namespace
	second         thread // in it
}

var places = []struct{ name, v4, v6 string }{
	{"web", "10.42.0.11", "fd42::11"}, {"db", "10.42.0.12", "fd42::12"}, {"job", "10.42.0.13", "fd42::13"},
	{"far", "10.42.1.21", "fd42::1:21"}, {"client", "192.0.2.2", "fd02::2"}, {"node", "10.42.0.1", "fd42::1"},
}

func newWorld(t *testing.T, v6 bool) *world {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{t: t, v6: v6, hosts: map[string]*nettest.Host{}, addrs: map[string]netip.Addr{},
		socket: filepath.Join(t.TempDir(), "policy.sock")}
	wire := nettest.New(t, "wire")
	wire.Bridge(t, "br0")
	for _, p := range places {
		w.hosts[p.name] = nettest.New(t, p.name)
		w.addrs[p.name] = netip.MustParseAddr(w.pick(p.v4, p.v6))
	}
	w.node = w.hosts["node"]
	w.node.Do(func() {
		var err error
		if w.nodeNS, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = unix.Close(w.nodeNS) })
	w.nodeThread()
	w.node.Bridge(t, "cni0", "10.42.0.1/24", "fd42::1/112")
	for _, n := range []string{"web", "db", "job"} {
		h, i := w.hosts[n], slices.Index([]string{"web", "db", "job"}, n)
		h.Plug(t, "eth0", w.node, "cni0", fmt.Sprintf("%s/24", places[i].v4), fmt.Sprintf("%s/112", places[i].v6))
		h.Route(t, "0.0.0.0/0", "10.42.0.1")
		h.Route(t, "::/0", "fd42::1")
	}
	w.node.Plug(t, "eth0", wire, "br0", "192.0.2.1/24", "fd02::1/64")
	w.hosts["client"].Plug(t, "eth0", wire, "br0", "192.0.2.2/24", "fd02::2/64")
	w.hosts["far"].Plug(t, "eth0", wire, "br0", "192.0.2.3/24", "fd02::3/64")
	w.hosts["far"].Address(t, "lo", "10.42.1.21/32", "fd42::1:21/128")
	w.node.Sysctl(t, "net/ipv4/ip_forward", "1")
	w.node.Sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	w.node.Sysctl(t, "net/bridge/bridge-nf-call-iptables", "1")
	w.node.Sysctl(t, "net/bridge/bridge-nf-call-ip6tables", "1")
	w.node.Route(t, "10.42.1.0/24", "192.0.2.3")
	w.node.Route(t, "fd42::1:0/112", "fd02::3")
	for _, h := range []string{"client", "far"} {
		for _, r := range [][2]string{{"10.42.0.0/24", "192.0.2.1"}, {"10.43.0.0/16", "192.0.2.1"},
			{"fd42::/112", "fd02::1"}, {"fd43::/64", "fd02::1"}} {
			w.hosts[h].Route(t, r[0], r[1])
		}
	}
	w.hosts["client"].Route(t, "10.42.1.0/24", "192.0.2.3")
	w.hosts["client"].Route(t, "fd42::1:0/112", "fd02::3")
	// The service proxy is always there, and its rules make the kernel follow connections.
	for _, f := range []string{"ip", "ip6"} {
		w.nft("add table "+f+" other", "add chain "+f+" other nat { type nat hook prerouting priority 0 ; }",
			"add rule "+f+" other nat ct state new accept")
	}
	for _, n := range []string{"web", "db", "job", "far", "client"} {
		for _, port := range []int{8080, 8081} {
			w.hosts[n].Serve(t, port)
		}
	}
	w.client = fake.NewClientset(
		&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: thisNode},
			Spec: v1.NodeSpec{PodCIDRs: []string{"10.42.0.0/24", "fd42::/112"}}},
		w.namespace("shop", nil), w.namespace("other", map[string]string{"team": "red"}),
		w.pod("shop", "web", thisNode, 8080), w.pod("shop", "db", thisNode, 8081),
		w.pod("other", "job", thisNode, 8080), w.pod("shop", "far", "there", 8081),
	)
	w.run()
	return w
}

func (w *world) pick(v4, v6 string) string {
	if w.v6 {
		return v6
	}
	return v4
}

func (w *world) namespace(name string, l map[string]string) *v1.Namespace {
	return &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: l}}
}

func (w *world) pod(ns, name, node string, http int32) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID("uid-" + name),
		Labels: map[string]string{"app": name}}}
	p.Spec.NodeName = node
	p.Spec.Containers = []v1.Container{{Ports: []v1.ContainerPort{{Name: "http", ContainerPort: http,
		Protocol: v1.ProtocolTCP}, {Name: "http-udp", ContainerPort: http, Protocol: v1.ProtocolUDP}}}}
	p.Status.Phase = v1.PodRunning
	for _, x := range places {
		if x.name == name {
			p.Status.PodIPs = []v1.PodIP{{IP: x.v4}, {IP: x.v6}}
		}
	}
	return p
}

// run starts Policies in the node's namespace.
func (w *world) run() {
	t := w.t
	ctx, cancel := context.WithCancel(context.Background())
	inf := informers.NewSharedInformerFactory(w.client, 0)
	p, err := New(Config{NodeName: thisNode, ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"),
		netip.MustParsePrefix("fd42::/56")},
		Client: w.client, Informers: inf, Socket: w.socket, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	inf.Start(ctx.Done())
	ready, done := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go w.node.Do(func() { done <- p.Run(ctx, func() { once.Do(func() { close(ready) }) }) })
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	w.policies = p
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		inf.Shutdown()
	}
	t.Cleanup(w.stop)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// until waits until cond holds; it is asked again whenever something has changed.
func (w *world) until(what string, cond func(p *Policies) bool) {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for {
		w.policies.mu.Lock()
		ok, news := cond(w.policies), w.policies.news
		w.policies.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-news:
		case <-late:
			w.t.Fatalf("waited in vain until %s: %+v", what, w.policies.Status())
		}
	}
}

// inForce reports whether the kernel has all that is wanted. The caller holds the lock.
func inForce(p *Policies) bool {
	if len(p.policies) == 0 {
		return p.session == nil && p.status.Ready && p.status.Syncs == 0
	}
	return p.session != nil && p.session.applied == p.session.revision && p.session.applied > 0
}

// apply puts policies in place of all that were there, each a spec for namespace shop unless it says
// otherwise, and waits until they are in force.
func (w *world) apply(specs ...string) {
	w.t.Helper()
	ctx := context.Background()
	old, err := w.client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	want := map[types.NamespacedName]int64{}
	for i, text := range specs {
		np := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("np-%d", i)}}
		if ns, rest, ok := strings.Cut(text, " | "); ok {
			np.Namespace, text = ns, rest
		}
		np.Spec = *parse[networking.NetworkPolicySpec](w.t, text)
		w.lastGeneration++
		np.Generation = w.lastGeneration
		np.UID = types.UID(fmt.Sprint(np.Namespace, i))
		c := w.client.NetworkingV1().NetworkPolicies(np.Namespace)
		if _, err = c.Update(ctx, np, metav1.UpdateOptions{}); err != nil {
			if _, err = c.Create(ctx, np, metav1.CreateOptions{}); err != nil {
				w.t.Fatal(err)
			}
		}
		want[types.NamespacedName{Namespace: np.Namespace, Name: np.Name}] = np.Generation
	}
	for _, o := range old.Items {
		if _, stays := want[types.NamespacedName{Namespace: o.Namespace, Name: o.Name}]; !stays {
			if err := w.client.NetworkingV1().NetworkPolicies(o.Namespace).Delete(ctx, o.Name,
				metav1.DeleteOptions{}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.until("policies are in force", func(p *Policies) bool {
		got := map[types.NamespacedName]int64{}
		for n, x := range p.policies {
			got[n] = x.generation
		}
		return maps.Equal(got, want) && inForce(p)
	})
}

// try sends and reports whether an answer comes.
func (w *world) try(from, network, to string, port int) bool {
	w.t.Helper()
	return w.ask(from, network, netip.AddrPortFrom(w.addrs[to], uint16(port)).String()) != ""
}

// ask is like nettest's, with less patience: what is dropped never comes.
func (w *world) ask(from, network, to string) (answer string) {
	dial := func() {
		const wait = 250 * time.Millisecond
		d := net.Dialer{Timeout: wait}
		if from == "far" {
			// Another node's pod speaks with its own address.
			ap := netip.AddrPortFrom(w.addrs["far"], 0)
			if d.LocalAddr = net.Addr(net.TCPAddrFromAddrPort(ap)); network == "udp" {
				d.LocalAddr = net.UDPAddrFromAddrPort(ap)
			}
		}
		c, err := d.Dial(network, to)
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		_, _ = c.Write([]byte("?"))
		b := make([]byte, 200)
		n, _ := c.Read(b)
		answer = string(b[:n])
	}
	if from == "node" {
		w.inNode(dial) // the other thread runs Policies
		return answer
	}
	w.hosts[from].Do(dial)
	return answer
}

// matrix says for each place who reaches it.
func (w *world) matrix(network string, port int, to ...string) map[string]string {
	type cell struct{ from, to string }
	got := make(chan cell, 100)
	var all sync.WaitGroup
	for _, from := range places {
		all.Go(func() {
			for _, dst := range to {
				if dst != from.name && w.try(from.name, network, dst, port) {
					got <- cell{from.name, dst}
				}
			}
		})
	}
	all.Wait()
	close(got)
	reach := map[string][]string{}
	for c := range got {
		reach[c.to] = append(reach[c.to], c.from)
	}
	out := map[string]string{}
	for _, dst := range to {
		slices.Sort(reach[dst])
		out[dst] = strings.Join(reach[dst], " ")
	}
	return out
}

const (
	everybodyWeb = "client db far job node"
	everybodyDB  = "client far job node web"
)

// TestWhoReachesWhom: each feature with real packets, in both families.
func TestWhoReachesWhom(t *testing.T) {
	type want map[string]string // place:port/protocol to who reaches it
	cases := []struct {
		name     string
		policies []string
		want     want
	}{
		{"no policy", nil, want{"web:8080/tcp": everybodyWeb, "db:8080/udp": everybodyDB,
			"far:8080/tcp": "client db job node web"}},
		{"default deny of ingress", []string{`{podSelector: {}, policyTypes: [Ingress]}`},
			want{"web:8080/tcp": "node", "db:8080/udp": "node", "job:8080/tcp": "client db far node web",
				"far:8080/tcp": "client db job node web"}},
		{"default deny of egress", []string{`{podSelector: {}, policyTypes: [Egress]}`},
			want{"web:8080/tcp": "client far job node", "job:8080/udp": "client far node",
				"far:8080/tcp": "client job node", "client:8080/tcp": "far job node"}},
		{"default deny of both", []string{`{podSelector: {}, policyTypes: [Ingress, Egress]}`},
			want{"web:8080/tcp": "node", "far:8080/tcp": "client job node"}},
		{"policyTypes by default: ingress", []string{`{podSelector: {matchLabels: {app: web}}}`},
			want{"web:8080/tcp": "node", "db:8080/tcp": everybodyDB}},
		{"policyTypes by default: egress, too, where there are rules",
			[]string{`{podSelector: {matchLabels: {app: web}}, egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}`},
			want{"web:8080/tcp": "node", "db:8080/tcp": everybodyDB, "job:8080/tcp": "client db far node"}},
		{"allow all", []string{`{podSelector: {}, policyTypes: [Ingress]}`, `{podSelector: {}, ingress: [{}]}`},
			want{"web:8080/tcp": everybodyWeb}},
		{"podSelector", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`},
			want{"web:8080/tcp": "db node", "web:8081/udp": "db node", "db:8080/tcp": everybodyDB}},
		{"podSelector does not reach into other namespaces",
			[]string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}`},
			want{"web:8080/tcp": "db far node"}},
		{"namespaceSelector", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}`},
			want{"web:8080/tcp": "job node"}},
		{"empty namespaceSelector: all pods, nobody else",
			[]string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}`},
			want{"web:8080/tcp": "db far job node"}},
		{"both selectors in one peer", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [job, far]}]}}]}]}`},
			want{"web:8080/tcp": "far job node"}},
		{"both selectors in two peers", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}, {podSelector: {matchLabels: {app: db}}}]}]}`},
			want{"web:8080/tcp": "db job node"}},
		{"ipBlock", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: OUTSIDE}}]}]}`},
			want{"web:8080/tcp": "client node"}},
		{"ipBlock with except", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: PODS, except: [DB]}}]}]}`},
			want{"web:8080/tcp": "far job node"}},
		{"ipBlock of egress", []string{`{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: OUTSIDE}}]}]}`},
			want{"client:8080/tcp": "db far job node web", "db:8080/tcp": "client far job node"}},
		{"port and protocol", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}, {port: 8081, protocol: UDP}]}]}`},
			want{"web:8080/tcp": everybodyWeb, "web:8080/udp": "node", "web:8081/tcp": "node",
				"web:8081/udp": everybodyWeb}},
		{"all ports of a protocol", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{protocol: UDP}]}]}`},
			want{"web:8080/tcp": "node", "web:8081/udp": everybodyWeb}},
		{"range of ports", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8000, endPort: 8080}]}]}`},
			want{"web:8080/tcp": everybodyWeb, "web:8081/tcp": "node"}},
		{"port and peer", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 8080}]}, {from: [{namespaceSelector: {matchLabels: {team: red}}}], ports: [{port: 8081}]}]}`},
			want{"web:8080/tcp": "db node", "web:8081/tcp": "job node"}},
		{"named port, another with each pod", []string{`{podSelector: {}, ingress: [{ports: [{port: http}]}]}`},
			want{"web:8080/tcp": everybodyWeb, "web:8081/tcp": "node", "db:8081/tcp": everybodyDB,
				"db:8080/tcp": "node"}},
		{"named port of a peer", []string{`{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: http}]}]}`},
			want{"db:8081/tcp": everybodyDB, "db:8080/tcp": "client far job node",
				"far:8081/tcp": "client db job node web", "far:8080/tcp": "client db job node"}},
		{"named port of UDP", []string{`{podSelector: {}, ingress: [{ports: [{port: http-udp, protocol: UDP}]}]}`},
			want{"web:8080/udp": everybodyWeb, "web:8080/tcp": "node"}},
		{"egress here and ingress there must both allow", []string{
			`{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`,
			`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 8081}]}]}`},
			want{"web:8080/tcp": "node", "web:8081/tcp": "db node", "job:8080/tcp": "client far node web"}},
		{"policies add up", []string{
			`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`,
			`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}`},
			want{"web:8080/tcp": "db job node"}},
		{"in another namespace", []string{`other | {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`},
			want{"job:8080/tcp": "node", "web:8080/tcp": everybodyWeb}},
		{"no policy again", nil, want{"web:8080/tcp": everybodyWeb, "db:8080/udp": everybodyDB}},
	}
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, v6)
			words := strings.NewReplacer("OUTSIDE", w.pick("192.0.2.0/24", "fd02::/64"), "PODS",
				w.pick("10.42.0.0/16", "fd42::/64"), "DB", w.pick("10.42.0.12/32", "fd42::12/128"))
			for _, c := range cases {
				var specs []string
				for _, p := range c.policies {
					specs = append(specs, words.Replace(p))
				}
				w.apply(specs...)
				for where, who := range c.want {
					place, rest, _ := strings.Cut(where, ":")
					port, network, _ := strings.Cut(rest, "/")
					n := 8080
					if port == "8081" {
						n = 8081
					}
					if got := w.matrix(network, n, place)[place]; got != who {
						t.Errorf("%s: %s is reached by %q, should be by %q", c.name, where, got, who)
					}
				}
			}
		})
	}
}

// TestLabelsAndAddressesChange: what pods and namespaces are is followed.
func TestLabelsAndAddressesChange(t *testing.T) {
	w := newWorld(t, false)
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}, {namespaceSelector: {matchLabels: {team: red}}}]}]}`)
	expect := func(what, who string) {
		t.Helper()
		if got := w.matrix("tcp", 8080, "web")["web"]; got != who {
			t.Errorf("%s: web is reached by %q, should be by %q", what, got, who)
		}
	}
	expect("at first", "db job node")
	ctx := context.Background()
	update := func(p *v1.Pod) {
		t.Helper()
		w.policies.mu.Lock()
		before := w.policies.session.revision
		w.policies.mu.Unlock()
		if _, err := w.client.CoreV1().Pods(p.Namespace).Update(ctx, p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("the pod has changed", func(p *Policies) bool { return p.session.revision > before && inForce(p) })
	}
	db := w.pod("shop", "db", thisNode, 8081)
	db.Labels = map[string]string{"app": "dbase"}
	update(db)
	expect("db has another label", "job node")
	far := w.pod("shop", "far", "there", 8081)
	far.Labels = map[string]string{"app": "db"}
	update(far)
	expect("far is a db", "far job node")
	web := w.pod("shop", "web", thisNode, 8080)
	web.Labels = nil
	update(web)
	expect("web is not selected", everybodyWeb)
	web.Labels = map[string]string{"app": "web"}
	update(web)
	w.policies.mu.Lock()
	before := w.policies.session.revision
	w.policies.mu.Unlock()
	if _, err := w.client.CoreV1().Namespaces().Update(ctx, w.namespace("other", map[string]string{"team": "blue"}),
		metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until("the namespace has changed", func(p *Policies) bool { return p.session.revision > before && inForce(p) })
	expect("the namespace has another label", "far node")
	far.Status.Phase = v1.PodSucceeded
	update(far)
	expect("far has ended", "node")
}

// TestServices: policies are about the endpoint that was chosen and the client's own address.
func TestServices(t *testing.T) {
	w := newWorld(t, false)
	w.nft("add table ip nat", "add chain ip nat pre { type nat hook prerouting priority -100 ; }",
		"add rule ip nat pre ip daddr 10.43.0.10 tcp dport 80 dnat to 10.42.0.11:8080",
		"add chain ip nat post { type nat hook postrouting priority 100 ; }",
		"add rule ip nat post ct status dnat masquerade")
	reach := func() (out []string) {
		for _, from := range []string{"web", "db", "job", "client"} {
			if a := w.ask(from, "tcp", "10.43.0.10:80"); a != "" {
				if !strings.HasSuffix(a, " 10.42.0.1") {
					t.Errorf("%s: not masqueraded: %q", from, a)
				}
				out = append(out, from)
			}
		}
		return out
	}
	if got := reach(); !slices.Equal(got, []string{"web", "db", "job", "client"}) {
		t.Fatalf("without policies: %q", got)
	}
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`)
	if got := reach(); !slices.Equal(got, []string{"web", "db"}) {
		t.Errorf("ingress by selector: %q (a pod always reaches itself)", got)
	}
	w.apply(`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]}`)
	if got := reach(); !slices.Equal(got, []string{"web", "db", "job", "client"}) {
		t.Errorf("egress to the endpoint's port: %q", got)
	}
	w.apply(`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.43.0.0/16}}], ports: [{port: 80}]}]}`)
	if got := reach(); !slices.Equal(got, []string{"web", "job", "client"}) {
		t.Errorf("egress to the Service's address: %q", got)
	}
}

// TestNode: the node and its pods always reach each other, and so pods reach DNS, which is on the node.
func TestNode(t *testing.T) {
	w := newWorld(t, false)
	w.inNode(func() { // as agent/dataplane/dns does it
		if out, err := exec.Command("ip", "address", "add", "169.254.53.53/32", "dev",
			"lo").CombinedOutput(); err != nil {
			t.Error(err, string(out))
		}
	})
	w.nft("add table ip dns", "add chain ip dns pre { type nat hook prerouting priority -150 ; }",
		"add rule ip dns pre ip daddr 10.43.0.2 udp dport 53 dnat to 169.254.53.53:8053")
	w.inNode(func() {
		nettest.ServeUDP(t, "udp4", "169.254.53.53:8053", func(string, netip.Addr) string { return "dns" })
	})
	w.apply(`{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	if got := w.ask("web", "udp", "10.43.0.2:53"); got != "dns" {
		t.Errorf("a pod with no egress asks for names and gets %q", got)
	}
	if !w.try("node", "tcp", "web", 8080) {
		t.Error("the node does not reach its pod")
	}
	if w.try("web", "tcp", "db", 8080) {
		t.Error("the policy is not in force")
	}
}

// thread is a second thread in the node's namespace: the first runs Policies.
type thread chan func()

func (t thread) Do(f func()) {
	done := make(chan struct{})
	t <- func() { defer close(done); f() }
	<-done
}

func (w *world) nodeThread() thread {
	if w.second != nil {
		return w.second
	}
	w.second = make(thread)
	up := make(chan error)
	go func() {
		stdruntime.LockOSThread()
		err := unix.Setns(w.nodeNS, unix.CLONE_NEWNET)
		up <- err
		for f := range w.second {
			f()
		}
	}()
	if err := <-up; err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { close(w.second) })
	return w.second
}

// inNode runs f in the node's namespace, on a thread of its own.
func (w *world) inNode(f func()) { w.nodeThread().Do(f) }

var errTimeout = errors.New("nothing came")

// stream is a connection on which the server, or the client, says something again and again.
type stream struct {
	client, server net.Conn
}

// connect opens a connection that stays.
func (w *world) connect(from, to string, port int) stream {
	w.t.Helper()
	accepted := make(chan net.Conn, 1)
	w.hosts[to].Do(func() {
		l, err := net.Listen("tcp", netip.AddrPortFrom(w.addrs[to], uint16(port)).String())
		if err != nil {
			w.t.Error(err)
			return
		}
		go func() {
			defer l.Close()
			if c, err := l.Accept(); err == nil {
				accepted <- c
			}
		}()
	})
	var s stream
	w.hosts[from].Do(func() {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(w.addrs[to], uint16(port)).String(), 2*time.Second)
		if err != nil {
			w.t.Error(err)
			return
		}
		s.client = c
	})
	if s.client == nil {
		w.t.FailNow()
	}
	s.server = <-accepted
	w.t.Cleanup(func() { _ = s.client.Close(); _ = s.server.Close() })
	return s
}

// passes says whether something said at one end comes out at the other.
func passes(from, to net.Conn) error {
	if _, err := from.Write([]byte("x")); err != nil {
		return err
	}
	_ = to.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	b := make([]byte, 100)
	n, err := to.Read(b)
	if n > 0 {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errTimeout
	}
	return err
}

// TestOpenConnectionsEnd: when a policy comes that forbids them, and only those.
func TestOpenConnectionsEnd(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, c := range []struct{ name, policy string }{
			{"ingress", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}`},
			{"egress", `{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}`},
		} {
			for _, speaker := range []string{"client", "server"} {
				t.Run(fmt.Sprintf("v6=%v/%s/%s speaks", v6, c.name, speaker), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t, v6)
					forbidden, allowed := w.connect("db", "web", 9000), w.connect("job", "web", 9001)
					for _, s := range []stream{forbidden, allowed} {
						if err := errors.Join(passes(s.client, s.server), passes(s.server, s.client)); err != nil {
							t.Fatal(err)
						}
					}
					w.apply(c.policy)
					w.untilEnded(1)
					from, to := forbidden.client, forbidden.server
					if speaker == "server" {
						from, to = to, from
					}
					for range 3 {
						if err := passes(from, to); err == nil {
							t.Fatal("a forbidden connection goes on")
						}
					}
					// A TCP sender is told.
					if _, err := from.Write([]byte("x")); err == nil {
						t.Error("who sends is not told that the connection is over")
					}
					if err := errors.Join(passes(allowed.client, allowed.server),
						passes(allowed.server, allowed.client)); err != nil {
						t.Errorf("an allowed connection: %v", err)
					}
					// The answer's way round is no way in.
					if err := passes(to, from); err == nil {
						t.Error("a forbidden connection goes on the other way round")
					}
				})
			}
		}
	}
}

// untilEnded waits until some connections were ended.
func (w *world) untilEnded(n uint64) {
	w.t.Helper()
	late := time.Now().Add(10 * time.Second)
	for w.policies.Status().Ended < n {
		if time.Now().After(late) {
			w.inNode(func() {
				raw, _ := exec.Command("conntrack", "-L").CombinedOutput()
				w.t.Logf("%s", raw)
			})
			w.t.Fatalf("%+v", w.policies.Status())
		}
		time.Sleep(10 * time.Millisecond) // conntrack is looked through beside the loop, which tells nobody
	}
}

// TestUDPFlowsEnd: answers of a UDP peer stop, too.
func TestUDPFlowsEnd(t *testing.T) {
	w := newWorld(t, false)
	var c net.Conn
	w.hosts["db"].Do(func() { c, _ = net.Dial("udp", "10.42.0.11:8080") })
	defer c.Close()
	ask := func() error {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err := c.Read(make([]byte, 100))
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	w.apply(`{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}`)
	w.untilEnded(1)
	if err := ask(); err == nil {
		t.Error("a forbidden flow goes on")
	}
	w.apply()
	if err := ask(); err != nil {
		t.Errorf("without the policy: %v", err)
	}
}

// TestFirstPacket: a pod that was announced has its policies before the API server knows its address; one
// that was not is cut off.
func TestFirstPacket(t *testing.T) {
	w := newWorld(t, false)
	ctx := context.Background()
	pod := nettest.New(t, "late")
	pod.Plug(t, "eth0", w.node, "cni0", "10.42.0.50/24")
	pod.Route(t, "0.0.0.0/0", "10.42.0.1")
	pod.Serve(t, 8080)
	w.hosts["late"] = pod
	w.addrs["late"] = netip.MustParseAddr("10.42.0.50")
	if !w.try("late", "tcp", "web", 8080) {
		t.Error("without policies a pod needs no announcement")
	}
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: late}}}]}]}`,
		`{podSelector: {matchLabels: {app: late}}, policyTypes: [Ingress]}`)
	if w.try("late", "tcp", "db", 8080) || w.try("db", "tcp", "late", 8080) {
		t.Error("an unknown pod reaches somebody or is reached")
	}
	if !w.try("node", "tcp", "late", 8080) {
		t.Error("the node does not reach an unknown pod")
	}
	p := w.pod("shop", "late", thisNode, 8080) // no address yet
	p.Status.Phase = v1.PodPending
	announced := make(chan error, 1)
	start := time.Now()
	go func() {
		announced <- announce.Send(ctx, w.socket, announce.Pod{Namespace: "shop",
			Name: "late", UID: "uid-late", Container: "c1", Addrs: []netip.Addr{w.addrs["late"]}})
	}()
	if _, err := w.client.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-announced; err != nil {
		t.Fatal(err)
	}
	t.Logf("announced and in force after %s", time.Since(start))
	if !w.try("late", "tcp", "web", 8080) || w.try("db", "tcp", "late", 8080) {
		t.Error("the policies are not in force")
	}
	if err := announce.Send(ctx, w.socket, announce.Pod{Namespace: "shop",
		Name: "late", UID: "uid-late", Container: "c1", Gone: true}); err != nil {
		t.Fatal(err)
	}
	w.until("the pod is gone", inForce)
	if w.try("late", "tcp", "web", 8080) {
		t.Error("an address that was given back still counts")
	}
	w.apply()
	start = time.Now()
	if err := announce.Send(ctx, w.socket, announce.Pod{Namespace: "shop",
		Name: "late", UID: "uid-late", Container: "c2", Addrs: []netip.Addr{w.addrs["late"]}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("without policies an announcement takes %s", time.Since(start))
	// It is remembered: policies may come before the API server knows the address.
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: late}}}]}]}`)
	if !w.try("late", "tcp", "web", 8080) {
		t.Error("an announcement was forgotten")
	}
}

// TestAllowedConnectionsDoNotNotice: what is allowed before a change and after it is so all the while, also where
// the ranges that allow it are others.
func TestAllowedConnectionsDoNotNotice(t *testing.T) {
	w := newWorld(t, false)
	stop := make(chan struct{})
	var traffic sync.WaitGroup
	var asked atomic.Int64
	from := []string{"client", "job"}
	for _, h := range from {
		traffic.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := w.hosts[h].Ask("tcp", "10.42.0.11:8080", nettest.Patience); got == "" {
					t.Errorf("%s: %v", h, err)
				}
				asked.Add(1)
			}
		})
	}
	for i := range 250 {
		w.apply(fmt.Sprintf("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [198.51.100.%d/32]}}], ports: [{port: 8000, endPort: %d}]}]}", i, 9000+i))
	}
	close(stop)
	traffic.Wait()
	lost := 0
	for _, h := range from {
		lost += w.hosts[h].SentAgain(t)
	}
	w.stop() // the node's thread is free then
	// What conntrack drops since two connections clash is no fault of the rules.
	if lost -= w.node.Counters(t)["conntrack:insert_failed"]; lost > 0 {
		t.Errorf("of %d connections %d lost their first packet\n%s", asked.Load(), lost, w.node.Since(t, nil))
	}
}

// TestRestartAndForeignHands: rules stay in force while nobody looks after them, and come back when
// somebody removes them.
func TestRestartAndForeignHands(t *testing.T) {
	w := newWorld(t, false)
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}`)
	open := w.connect("db", "web", 9000)
	w.stop()
	if w.try("job", "tcp", "web", 8080) || !w.try("db", "tcp", "web", 8080) {
		t.Error("while umiak is not there, policies are not in force")
	}
	stop := make(chan struct{})
	leaked := make(chan bool, 1)
	go func() {
		for {
			select {
			case <-stop:
				leaked <- false
				return
			default:
			}
			if w.try("job", "tcp", "web", 8080) {
				leaked <- true
				return
			}
		}
	}()
	w.run()
	w.until("adopted", inForce)
	close(stop)
	if <-leaked {
		t.Error("the restart left a gap")
	}
	if err := passes(open.client, open.server); err != nil {
		t.Errorf("an open connection over a restart: %v", err)
	}
	for _, cmd := range []string{"flush ruleset", "delete table ip umiak-policy", "flush map ip umiak-policy ingress",
		"insert rule ip umiak-policy filter-ingress accept"} {
		before := w.policies.Status().Repairs
		w.nft(cmd)
		w.until("repaired", func(p *Policies) bool { return p.status.Repairs > before && inForce(p) })
		if w.try("job", "tcp", "web", 8080) || !w.try("db", "tcp", "web", 8080) {
			t.Errorf("after %q policies are not in force", cmd)
		}
	}
	w.apply()
	out := ""
	w.inNode(func() {
		raw, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
		out = string(raw)
	})
	if strings.Contains(out, "umiak-policy") {
		t.Errorf("without policies there is a table: %s", out)
	}
}

// TestSCTP: ports of SCTP, with hand-made packets: not every kernel has it.
func TestSCTP(t *testing.T) {
	w := newWorld(t, false)
	w.apply(`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 7000, protocol: SCTP}]}]}`)
	for _, c := range []struct {
		port  uint16
		chunk byte
		want  bool
	}{{7000, nettest.SCTPInit, true}, {7001, nettest.SCTPInit, false}, {7000, nettest.SCTPData, false}} {
		to := netip.AddrPortFrom(w.addrs["web"], c.port)
		if got, ok := w.hosts["db"].SCTP(t, to, c.chunk, w.hosts["web"]); ok != c.want {
			t.Errorf("chunk %d to port %d: %v %+v", c.chunk, c.port, ok, got)
		}
	}
}

// TestWithoutTheServer: pods of a node that starts without its server wait for policies, unless there were
// none.
func TestWithoutTheServer(t *testing.T) {
	for _, none := range []bool{true, false} {
		t.Run(fmt.Sprintf("none=%v", none), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			state := filepath.Join(dir, "none")
			client := fake.NewClientset()
			client.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, errors.New("away")
			})
			p, err := New(Config{NodeName: thisNode, Client: client,
				Informers: informers.NewSharedInformerFactory(client, 0), StateFile: state})
			if err != nil {
				t.Fatal(err)
			}
			p.persistNoPolicies(none)
			ctx, cancel := context.WithTimeout(context.Background(), watchTimeout+2*time.Second)
			defer cancel()
			err = p.announce(ctx, announce.Pod{Namespace: "a", Name: "b", Container: "c",
				Addrs: []netip.Addr{netip.MustParseAddr("10.42.0.9")}})
			if (err == nil) != none {
				t.Errorf("a pod was told %v", err)
			}
		})
	}
}

func (w *world) nft(cmds ...string) {
	w.t.Helper()
	w.inNode(func() {
		for _, c := range cmds {
			if out, err := exec.Command("nft", strings.Fields(c)...).CombinedOutput(); err != nil {
				w.t.Errorf("nft %s: %v %s", c, err, out)
			}
		}
	})
}
