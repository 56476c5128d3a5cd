package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	v1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/nft"
	"github.com/umiak-io/umiak/agent/dataplane/proxy/rules"
	"github.com/umiak-io/umiak/internal/testing/nettest"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own: the proxy opens its sockets on whatever
// thread it is on, so the whole process has to be there.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

// network makes lo a node with the addresses of pods on it.
func network(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	for _, a := range []string{"192.0.2.1/32", "10.42.0.1/32", "10.42.0.2/32", "10.42.0.3/32"} {
		addr, _ := netlink.ParseAddr(a)
		if err == nil {
			err = netlink.AddrReplace(lo, addr)
		}
	}
	if err == nil {
		_, dst, _ := net.ParseCIDR("10.43.0.0/16")
		err = netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Src: net.IPv4(192, 0, 2, 1),
			Scope: netlink.SCOPE_LINK})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// pods answer with their address.
func pods(t *testing.T) {
	for _, ip := range []string{"10.42.0.1", "10.42.0.2", "10.42.0.3"} {
		nettest.ServeTCP(t, ip+":8080", nettest.Say(ip))
		nettest.ServeUDP(t, "udp4", ip+":8080", func(string, netip.Addr) string { return ip })
	}
}

func service(name, ip string, proto v1.Protocol) *v1.Service {
	local := v1.ServiceInternalTrafficPolicyCluster
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: v1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Type: v1.ServiceTypeClusterIP,
			InternalTrafficPolicy: &local,
			SessionAffinity:       v1.ServiceAffinityNone,
			Ports: []v1.ServicePort{{Name: "p", Port: 80, Protocol: proto,
				TargetPort: intstr.FromInt32(8080)}}}}
}

func slice(name string, proto v1.Protocol, ips ...string) *discovery.EndpointSlice {
	yes, node, port, p := true, "node", int32(8080), "p"
	s := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-1",
		Labels: map[string]string{discovery.LabelServiceName: name}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Name: &p, Port: &port, Protocol: &proto}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{Addresses: []string{ip},
			NodeName: &node, Conditions: discovery.EndpointConditions{Ready: &yes, Serving: &yes}})
	}
	return s
}

type cluster struct {
	*fake.Clientset
	t *testing.T
}

func (c cluster) put(objs ...any) {
	c.t.Helper()
	ctx := context.Background()
	for _, o := range objs {
		var err error
		switch o := o.(type) {
		case *v1.Service:
			if _, err = c.CoreV1().Services(o.Namespace).Update(ctx, o, metav1.UpdateOptions{}); err != nil {
				_, err = c.CoreV1().Services(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
			}
		case *discovery.EndpointSlice:
			if _, err = c.DiscoveryV1().EndpointSlices(o.Namespace).Update(ctx, o, metav1.UpdateOptions{}); err != nil {
				_, err = c.DiscoveryV1().EndpointSlices(o.Namespace).Create(ctx, o, metav1.CreateOptions{})
			}
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
}

// start runs a proxy and returns it, and what stops it.
func start(t *testing.T, c cluster) (*Proxy, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactory(c.Clientset, 0)
	p, err := New(Config{NodeName: "node", NodeIPs: []netip.Addr{netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("fd00::1")},
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Informers: factory,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	up, done := make(chan struct{}), make(chan error, 1)
	var once atomic.Bool
	go func() {
		done <- p.Run(ctx, func() {
			if !once.Swap(true) {
				close(up)
			}
		})
	}()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	case <-time.After(30 * time.Second):
		t.Fatal("not ready")
	}
	stop := func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
		factory.Shutdown()
	}
	return p, stop
}

func ask(to string) string {
	c, err := net.DialTimeout("tcp", to, time.Second)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return "refused"
		}
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b, _ := io.ReadAll(c)
	return string(b)
}

// until asks until the answer is there and returns how long that took.
func until(t *testing.T, want string, f func() string) time.Duration {
	t.Helper()
	begun := time.Now()
	var got string
	for time.Since(begun) < 20*time.Second {
		if got = f(); got == want {
			return time.Since(begun)
		}
	}
	t.Fatalf("got %q, want %q", got, want)
	return 0
}

func TestProxy(t *testing.T) {
	network(t)
	pods(t)
	c := cluster{fake.NewClientset(), t}
	c.put(service("one", "10.43.0.1", v1.ProtocolTCP), slice("one", v1.ProtocolTCP, "10.42.0.1"))
	p, stop := start(t, c)
	defer func() { stop() }()
	if got := ask("10.43.0.1:80"); got != "10.42.0.1" {
		t.Fatalf("ready, but got %q", got)
	}

	t.Run("a new Service answers soon", func(t *testing.T) {
		c.put(service("two", "10.43.0.2", v1.ProtocolTCP))
		until(t, "refused", func() string { return ask("10.43.0.2:80") })
		c.put(slice("two", v1.ProtocolTCP, "10.42.0.2"))
		took := until(t, "10.42.0.2", func() string { return ask("10.43.0.2:80") })
		t.Logf("answers %v after its endpoints", took)
		c.put(slice("two", v1.ProtocolTCP, "10.42.0.3"))
		t.Logf("new endpoint answers after %v", until(t, "10.42.0.3", func() string { return ask("10.43.0.2:80") }))
		if s := p.Status(); s.Services != 2 || s.Endpoints != 2 || s.LastError != "" || s.Repairs != 2 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("UDP goes on at the new endpoint", func(t *testing.T) {
		c.put(service("udp", "10.43.0.3", v1.ProtocolUDP), slice("udp", v1.ProtocolUDP, "10.42.0.1"))
		var conn net.Conn
		say := func() string {
			if conn == nil {
				conn, _ = net.Dial("udp", "10.43.0.3:80")
			}
			_, _ = conn.Write([]byte("?"))
			_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			b := make([]byte, 20)
			n, err := conn.Read(b)
			if err != nil {
				return err.Error()
			}
			return string(b[:n])
		}
		until(t, "10.42.0.1", say)
		c.put(slice("udp", v1.ProtocolUDP, "10.42.0.2"))
		until(t, "10.42.0.2", say) // from the same port all the time
		_ = conn.Close()
	})
	t.Run("somebody flushes the table", func(t *testing.T) {
		for _, args := range []string{"flush ruleset", "flush map ip umiak-proxy services-1",
			"delete table ip umiak-proxy"} {
			if out, err := exec.Command("nft", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			until(t, "10.42.0.1", func() string { return ask("10.43.0.1:80") })
		}
		until(t, "true", func() string { return fmt.Sprint(p.Status().Repairs >= 5) })
	})
	t.Run("health-check node port", func(t *testing.T) {
		s := service("lb", "10.43.0.4", v1.ProtocolTCP)
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = v1.ServiceTypeLoadBalancer, v1.ServiceExternalTrafficPolicyLocal, 32000
		s.Spec.Ports[0].NodePort = 30080
		c.put(s, slice("lb", v1.ProtocolTCP, "10.42.0.1"))
		get := func() string {
			r, err := http.Get("http://192.0.2.1:32000/")
			if err != nil {
				return err.Error()
			}
			_ = r.Body.Close()
			return r.Status
		}
		until(t, "200 OK", get)
		until(t, "10.42.0.1", func() string { return ask("192.0.2.1:30080") })
		c.put(slice("lb", v1.ProtocolTCP))
		until(t, "503 Service Unavailable", get)
		s = s.DeepCopy()
		s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = v1.ServiceExternalTrafficPolicyCluster, 0
		c.put(s)
		until(t, "refused", func() string { return ask("192.0.2.1:32000") })
	})
	t.Run("restart leaves no gap", func(t *testing.T) {
		stop()
		if got := ask("10.43.0.1:80"); got != "10.42.0.1" {
			t.Fatalf("stopped: got %q", got)
		}
		halt, failed := make(chan struct{}), make(chan string, 1)
		go func() {
			defer close(failed)
			for {
				select {
				case <-halt:
					return
				default:
				}
				if got := ask("10.43.0.1:80"); got != "10.42.0.1" {
					failed <- got
					return
				}
			}
		}()
		before, err := exec.Command("nft", "-a", "list", "table", "ip", "umiak-proxy").Output()
		if err != nil {
			t.Fatal(err)
		}
		p, stop = start(t, c)
		close(halt)
		if got, bad := <-failed; bad {
			t.Fatalf("during the restart: %q", got)
		}
		// The handles are those of before: nothing was written anew.
		if after, err := exec.Command("nft", "-a", "list", "table", "ip", "umiak-proxy").Output(); err != nil ||
			string(after) != string(before) {
			t.Errorf("the table was written anew: %v", err)
		}
	})
	t.Run("a Service goes", func(t *testing.T) {
		if err := c.CoreV1().Services("default").Delete(context.Background(), "two",
			metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		until(t, "3", func() string { return fmt.Sprint(p.Status().Services) })
		labelled := service("one", "10.43.0.1", v1.ProtocolTCP)
		labelled.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		c.put(labelled)
		until(t, "2", func() string { return fmt.Sprint(p.Status().Services) })
	})
	stop()
	stop = func() {}
	if _, err := netfilter.Remove(context.Background(), rules.TableName); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("nft", "list", "ruleset").Output(); strings.Contains(string(out), "umiak") {
		t.Fatalf("left after cleanup: %s", out)
	}
}

// TestErrorsAreRepaired: writes fail now and then; once they do not, the table is right.
func TestErrorsAreRepaired(t *testing.T) {
	f := newFamily(rules.IPv4, Config{NodeName: "node"}, &Proxy{})
	table := &fakeTable{}
	f.table, f.resync = table, true
	log := slog.New(slog.DiscardHandler)
	n := 0
	table.fail = func() error {
		if n++; n%3 == 0 {
			return syscall.ENOBUFS
		}
		return nil
	}
	failures := 0
	for i := range 300 {
		name := fmt.Sprintf("s%d", i%20)
		s := service(name, fmt.Sprintf("10.43.0.%d", i%20+1), v1.ProtocolTCP)
		f.services.Update(nil, s)
		f.endpoints.observe(slice(name, v1.ProtocolTCP, fmt.Sprintf("10.42.0.%d", i%7+1),
			fmt.Sprintf("10.42.0.%d", i%5+1)), i%11 == 0)
		f.read(nodeInfo{name: "node"}, false)
		if _, err := f.write(context.Background(), log); err != nil {
			if !errors.Is(err, syscall.ENOBUFS) {
				t.Fatal(err)
			}
			failures++
			continue
		}
		want := map[rules.Elem]bool{}
		for e := range f.builder.All() {
			want[e] = true
		}
		got := table.content()
		for _, e := range got {
			if !want[e] {
				t.Fatalf("step %d: %+v", i, e)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("step %d: %d elements, want %d", i, len(got), len(want))
		}
	}
	if failures == 0 {
		t.Fatal("nothing failed")
	}
}

// BenchmarkMemory reports what 5,000 Services with two endpoints each keep on the heap, the informers'
// objects not counted, and how long it takes to get them into the kernel.
func BenchmarkMemory(b *testing.B) {
	for _, n := range []int{5000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				conn, err := netfilter.Dial()
				if err != nil {
					b.Fatal(err)
				}
				f := newFamily(rules.IPv4, Config{NodeName: "node"}, &Proxy{})
				if f.table, err = nft.NewTable(conn, f.cfg); err != nil {
					b.Fatal(err)
				}
				f.resync = true
				begun := time.Now()
				for i := range n {
					name := fmt.Sprintf("service-%d", i)
					f.services.Update(nil, service(name, fmt.Sprintf("10.43.%d.%d", i/250, i%250+1), v1.ProtocolTCP))
					f.endpoints.observe(slice(name, v1.ProtocolTCP, fmt.Sprintf("10.42.%d.%d", i/250, i%250+1),
						fmt.Sprintf("10.41.%d.%d", i/250, i%250+1)), false)
				}
				f.read(nodeInfo{name: "node"}, false)
				if _, err := f.write(context.Background(), slog.New(slog.DiscardHandler)); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms/full")
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
				runtime.KeepAlive(f)
				_ = conn.Close()
			}
			_, _ = netfilter.Remove(context.Background(), rules.TableName)
		})
	}
}
