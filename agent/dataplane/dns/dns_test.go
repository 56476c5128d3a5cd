package dns_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"sigs.k8s.io/yaml"

	"github.com/umiak-io/umiak/agent/dataplane/dns"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/testns"
	"github.com/umiak-io/umiak/manifests"
)

// The network of the tests: this process is the node, in a namespace of its own; a pod is a further
// namespace behind a veth pair. There is no default route, as on a machine without a network.
const (
	podAddr, nodeAddr   = "10.42.0.5", "10.42.0.1"
	podAddr6, nodeAddr6 = "fd00:42::5", "fd00:42::1"
	upstreamAddr        = "192.0.2.53"
	clusterDNS          = "10.43.0.10"
	clusterDNS6         = "fd00:43::a"
)

var pod netns.NsHandle

func TestMain(m *testing.M) {
	os.Exit(testns.Run(func() int {
		if err := network(); err != nil {
			fmt.Fprintln(os.Stderr, "set up network (needs root):", err)
			return 1
		}
		return m.Run()
	}))
}

func network() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return err
	}
	if pod, err = netns.New(); err != nil {
		return err
	}
	if err := netns.Set(home); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cni0"}, PeerName: "eth0",
		PeerNamespace: netlink.NsFd(pod)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	up := func(name string, addrs ...string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, s := range addrs {
			a, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if strings.Contains(s, ":") {
				a.Flags = syscall.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	if err := errors.Join(up("lo", upstreamAddr+"/32", "192.0.2.54/32"), up("cni0", nodeAddr+"/24", nodeAddr6+"/64"),
		os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0)); err != nil {
		return err
	}
	if err := netns.Set(pod); err != nil {
		return err
	}
	defer netns.Set(home)
	err = errors.Join(up("lo"), up("eth0", podAddr+"/24", podAddr6+"/64"))
	for _, gw := range []string{nodeAddr, nodeAddr6} {
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}))
	}
	return err
}

// inPod runs f with sockets of the pod's namespace.
func inPod(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err == nil {
		err = netns.Set(pod)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Set(home); err != nil {
			t.Fatal(err) // the thread stays locked, and dies with its goroutine
		}
		runtime.UnlockOSThread()
		_ = home.Close()
	}()
	f()
}

// upstream is a name server of the host.
type upstream struct {
	asked atomic.Int32
	*mdns.Server
	tcp *mdns.Server
}

func startUpstream(t testing.TB, addr string, handle mdns.HandlerFunc) *upstream {
	t.Helper()
	u := &upstream{}
	h := mdns.HandlerFunc(func(w mdns.ResponseWriter, r *mdns.Msg) {
		u.asked.Add(1)
		handle(w, r)
	})
	u.Server = &mdns.Server{Addr: addr + ":53", Net: "udp", Handler: h}
	u.tcp = &mdns.Server{Addr: addr + ":53", Net: "tcp", Handler: h}
	for _, s := range []*mdns.Server{u.Server, u.tcp} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go s.ListenAndServe()
		<-up
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

// answer knows one small and one large name.
func answer(w mdns.ResponseWriter, r *mdns.Msg) {
	m := new(mdns.Msg).SetReply(r)
	name := r.Question[0].Name
	switch {
	case name == "outside.example." && r.Question[0].Qtype == mdns.TypeA:
		rr, _ := mdns.NewRR(name + " 300 IN A 198.51.100.7")
		m.Answer = append(m.Answer, rr)
	case name == "large.example.":
		for i := range 200 {
			rr, _ := mdns.NewRR(fmt.Sprintf("%s 300 IN A 198.51.100.%d", name, i))
			m.Answer = append(m.Answer, rr)
		}
		if w.RemoteAddr().Network() == "udp" {
			m.Truncate(512)
		}
	case name == ".":
	default:
		m.Rcode = mdns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

type world struct {
	client *fake.Clientset
	events *record.FakeRecorder
	server *dns.Server
	resolv string
	state  string
}

func ptr[T any](v T) *T { return &v }

func objects() []apiruntime.Object {
	service := func(ns, name string, change func(*core.Service)) *core.Service {
		s := &core.Service{ObjectMeta: meta.ObjectMeta{Namespace: ns, Name: name},
			Spec: core.ServiceSpec{Type: core.ServiceTypeClusterIP}}
		change(s)
		return s
	}
	slice := func(svc, name string, t discovery.AddressType, ports []discovery.EndpointPort,
		eps ...discovery.Endpoint) *discovery.EndpointSlice {
		return &discovery.EndpointSlice{ObjectMeta: meta.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{discovery.LabelServiceName: svc}},
			AddressType: t, Ports: ports, Endpoints: eps}
	}
	web := []discovery.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080)), Protocol: ptr(core.ProtocolTCP)}}
	var many []discovery.Endpoint
	for i := range 200 {
		many = append(many, discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.42.7.%d", i)}})
	}
	return []apiruntime.Object{
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "default"}},
		&core.Namespace{ObjectMeta: meta.ObjectMeta{Name: "kube-system"}},
		service("kube-system", "kube-dns", func(s *core.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = clusterDNS, []string{clusterDNS, clusterDNS6}
			s.Spec.Ports = []core.ServicePort{{Name: "dns", Port: 53, Protocol: core.ProtocolUDP}}
		}),
		service("default", "web", func(s *core.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.1.1", []string{"10.43.1.1", "fd00:43::1"}
			s.Spec.Ports = []core.ServicePort{{Name: "http", Port: 80, Protocol: core.ProtocolTCP}}
		}),
		service("default", "db", func(s *core.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "None",
				[]string{"None"}
		}),
		service("default", "many", func(s *core.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "None",
				[]string{"None"}
		}),
		service("default", "ext", func(s *core.Service) {
			s.Spec.Type, s.Spec.ExternalName = core.ServiceTypeExternalName, "outside.example"
		}),
		slice("db", "db-1", discovery.AddressTypeIPv4, web,
			discovery.Endpoint{Addresses: []string{"10.42.0.20"}, Hostname: ptr("db-0")},
			discovery.Endpoint{Addresses: []string{"10.42.0.21"}, Hostname: ptr("db-1")},
			discovery.Endpoint{Addresses: []string{"10.42.0.22"}, Hostname: ptr("db-2"),
				Conditions: discovery.EndpointConditions{Ready: ptr(false)}}),
		slice("db", "db-6", discovery.AddressTypeIPv6, web,
			discovery.Endpoint{Addresses: []string{"fd00:42::20"}, Hostname: ptr("db-0")}),
		slice("many", "many-1", discovery.AddressTypeIPv4, nil, many...),
	}
}

func newWorld(t testing.TB, resolv string, objs ...apiruntime.Object) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{client: fake.NewClientset(objs...), events: record.NewFakeRecorder(100),
		resolv: filepath.Join(dir, "resolv.conf"), state: filepath.Join(dir, "agent", "dns.json")}
	if err := os.WriteFile(w.resolv, []byte(resolv), 0o644); err != nil {
		t.Fatal(err)
	}
	return w
}

// run starts the server, as one run of the agent; the returned function ends it.
func (w *world) run(t testing.TB) (stop func()) {
	t.Helper()
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	f := informers.NewSharedInformerFactory(w.client, 0)
	s, err := dns.New(dns.Config{
		ClusterDomain: "cluster.local", ClusterDNS: []netip.Addr{netip.MustParseAddr(clusterDNS),
			netip.MustParseAddr(clusterDNS6)},
		ResolvConf: w.resolv, StateFile: w.state, Client: w.client, Informers: f, Events: w.events,
		Tables: reconcile.NewTables(slog.Default(), []string{dns.Table}),
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.server = s
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	var once atomic.Bool
	stop = func() {
		if !once.CompareAndSwap(false, true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		stop()
		if err := dns.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return stop
}

func ask(t testing.TB, server, network, name string, qtype uint16) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: 3 * time.Second}
	m, _, err := c.Exchange(new(mdns.Msg).SetQuestion(name, qtype), net.JoinHostPort(server, "53"))
	if err != nil {
		t.Fatalf("ask %s over %s for %s: %v", server, network, name, err)
	}
	return m
}

func text(m *mdns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		out = append(out, strings.Join(append([]string{f[0]}, f[3:]...), " "))
	}
	slices.Sort(out)
	if m.Rcode != mdns.RcodeSuccess {
		out = append(out, mdns.RcodeToString[m.Rcode])
	}
	return strings.Join(out, "; ")
}

func (w *world) synced(t testing.TB) {
	eventually.True(t, "the cluster's being known", func() bool {
		return w.server.Section(context.Background()).Rows[0].State == "serving"
	})
}

func TestNames(t *testing.T) {
	u := startUpstream(t, upstreamAddr, answer)
	w := newWorld(t, "nameserver "+upstreamAddr+"\n", objects()...)
	w.run(t)
	w.synced(t)
	for _, c := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"web.default.svc.cluster.local.", mdns.TypeA, "web.default.svc.cluster.local. A 10.43.1.1"},
		{"web.default.svc.cluster.local.", mdns.TypeAAAA, "web.default.svc.cluster.local. AAAA fd00:43::1"},
		{"db.default.svc.cluster.local.", mdns.TypeA,
			"db.default.svc.cluster.local. A 10.42.0.20; db.default.svc.cluster.local. A 10.42.0.21"},
		{"db.default.svc.cluster.local.", mdns.TypeAAAA, "db.default.svc.cluster.local. AAAA fd00:42::20"},
		{"db-1.db.default.svc.cluster.local.", mdns.TypeA, "db-1.db.default.svc.cluster.local. A 10.42.0.21"},
		{"_http._tcp.web.default.svc.cluster.local.", mdns.TypeSRV,
			"_http._tcp.web.default.svc.cluster.local. SRV 0 50 80 web.default.svc.cluster.local."},
		{"_http._tcp.db.default.svc.cluster.local.", mdns.TypeSRV,
			"_http._tcp.db.default.svc.cluster.local. SRV 0 33 8080 db-0.db.default.svc.cluster.local.; " +
				"_http._tcp.db.default.svc.cluster.local. SRV 0 33 8080 db-1.db.default.svc.cluster.local."},
		{"1.1.43.10.in-addr.arpa.", mdns.TypePTR, "1.1.43.10.in-addr.arpa. PTR web.default.svc.cluster.local."},
		{"20.0.42.10.in-addr.arpa.", mdns.TypePTR, "20.0.42.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."},
		{"10-42-0-5.default.pod.cluster.local.", mdns.TypeA, "10-42-0-5.default.pod.cluster.local. A 10.42.0.5"},
		{"ext.default.svc.cluster.local.", mdns.TypeA,
			"ext.default.svc.cluster.local. CNAME outside.example.; outside.example. A 198.51.100.7"},
		{"outside.example.", mdns.TypeA, "outside.example. A 198.51.100.7"},
		{"no.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"web.nowhere.svc.cluster.local.", mdns.TypeA, "NXDOMAIN"},
		{"nothing.example.", mdns.TypeA, "NXDOMAIN"},
		{"dns-version.cluster.local.", mdns.TypeTXT, `dns-version.cluster.local. TXT "1.1.0"`},
	} {
		for _, server := range []string{clusterDNS, clusterDNS6} {
			for _, network := range []string{"udp", "tcp"} {
				if got := text(ask(t, server, network, c.name, c.qtype)); got != c.want {
					t.Errorf("host, %s, %s: %s %s: got %s\nwant %s", server, network, c.name,
						mdns.TypeToString[c.qtype], got, c.want)
				}
				inPod(t, func() {
					if got := text(ask(t, server, network, c.name, c.qtype)); got != c.want {
						t.Errorf("pod, %s, %s: %s %s: got %s\nwant %s", server, network, c.name,
							mdns.TypeToString[c.qtype], got, c.want)
					}
				})
			}
		}
	}
	if n := u.asked.Load(); n == 0 {
		t.Error("the upstream was never asked")
	}
}

func TestLargeAnswersGoOverTCP(t *testing.T) {
	startUpstream(t, upstreamAddr, answer)
	w := newWorld(t, "nameserver "+upstreamAddr+"\n", objects()...)
	w.run(t)
	w.synced(t)
	for _, name := range []string{"many.default.svc.cluster.local.", "large.example."} {
		inPod(t, func() {
			if m := ask(t, clusterDNS, "udp", name, mdns.TypeA); !m.Truncated {
				t.Errorf("%s: not truncated over UDP, %d answers", name, len(m.Answer))
			}
			if m := ask(t, clusterDNS, "tcp", name, mdns.TypeA); m.Truncated || len(m.Answer) != 200 {
				t.Errorf("%s: %d answers over TCP", name, len(m.Answer))
			}
		})
	}
}

func TestCache(t *testing.T) {
	u := startUpstream(t, upstreamAddr, answer)
	w := newWorld(t, "nameserver "+upstreamAddr+"\n", objects()...)
	w.run(t)
	ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)
	before := u.asked.Load()
	for range 10 {
		ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)
	}
	if n := u.asked.Load() - before; n > 1 { // the loop probe may be among them
		t.Errorf("the upstream was asked %d times more", n)
	}
}

// TestServiceProxyDoesNotRefuse: to a service proxy the DNS Service has no endpoints, so it refuses all of
// its address. The table has what agent/dataplane/proxy's has, at the same places.
func TestServiceProxyDoesNotRefuse(t *testing.T) {
	nft := func(script string) {
		t.Helper()
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	nft(`table inet stand-in {
	chain refuse { meta l4proto tcp reject with tcp reset; reject; }
	chain services { ip daddr 10.43.0.0/16 ip saddr != 10.42.0.0/16 meta mark set 0x4000; ip6 daddr fd00:43::/64 meta mark set 0x4000; }
	chain refuse-services { ip daddr 10.43.0.10 jump refuse; ip6 daddr fd00:43::a jump refuse; }
	chain np { type nat hook prerouting priority -100; jump services; }
	chain no { type nat hook output priority -100; jump services; }
	chain post { type nat hook postrouting priority 99; meta mark 0x4000 counter masquerade; }
	chain fi { type filter hook input priority -110; ct state new jump refuse-services; }
	chain ff { type filter hook forward priority -110; ct state new jump refuse-services; }
	chain fo { type filter hook output priority -90; ct state new jump refuse-services; }
}`)
	defer nft("delete table inet stand-in")
	w := newWorld(t, "", objects()...)
	w.run(t)
	w.synced(t)
	for _, server := range []string{clusterDNS, clusterDNS6} {
		for _, network := range []string{"udp", "tcp"} {
			ok := func() {
				if got := text(ask(t, server, network, "web.default.svc.cluster.local.",
					mdns.TypeA)); !strings.Contains(got, "10.43.1.1") {
					t.Errorf("%s over %s: %s", server, network, got)
				}
			}
			ok()
			inPod(t, ok)
		}
		refused := func() {
			c, err := net.DialTimeout("tcp", net.JoinHostPort(server, "80"), time.Second)
			if err == nil {
				_ = c.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("another port of %s: %v", server, err)
			}
		}
		refused()
	}
}

func TestDirectAddressIsNotForOthers(t *testing.T) {
	w := newWorld(t, "", objects()...)
	w.run(t)
	w.synced(t)
	inPod(t, func() {
		for _, a := range []netip.Addr{dns.AddrV4, dns.AddrV6} {
			c := mdns.Client{Timeout: 300 * time.Millisecond}
			if m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA),
				net.JoinHostPort(a.String(), "53")); err == nil {
				t.Errorf("%s answers a neighbour: %v", a, text(m))
			}
		}
	})
	if got := text(ask(t, dns.AddrV4.String(), "udp", "web.default.svc.cluster.local.",
		mdns.TypeA)); !strings.Contains(got, "10.43.1.1") {
		t.Errorf("the host itself gets %s", got)
	}
}

func TestNoUpstreamFailsAtOnce(t *testing.T) {
	// Only addresses that lead back here.
	w := newWorld(t, "nameserver "+clusterDNS+"\nnameserver "+dns.AddrV4.String()+"\n", objects()...)
	w.run(t)
	w.synced(t)
	begun := time.Now()
	if got := text(ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)); got != "SERVFAIL" {
		t.Errorf("got %s", got)
	}
	if d := time.Since(begun); d > 500*time.Millisecond {
		t.Errorf("took %s", d)
	}
	if got := text(ask(t, clusterDNS, "udp", "web.default.svc.cluster.local.", mdns.TypeA)); !strings.Contains(got,
		"10.43.1.1") {
		t.Errorf("got %s", got)
	}
	// A resolver appears.
	startUpstream(t, upstreamAddr, answer)
	tmp := w.resolv + ".new"
	if err := errors.Join(os.WriteFile(tmp, []byte("nameserver "+upstreamAddr+"\n"), 0o644),
		os.Rename(tmp, w.resolv)); err != nil {
		t.Fatal(err)
	}
	w.server.ResolversChanged()
	eventually.True(t, "the new resolver's being used", func() bool {
		return text(ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)) == "outside.example. A 198.51.100.7"
	})
}

func TestForwardingLoopIsFoundAndCut(t *testing.T) {
	var forwarded atomic.Int32
	startUpstream(t, upstreamAddr, func(w mdns.ResponseWriter, r *mdns.Msg) { // a dnsmasq that asks the cluster
		forwarded.Add(1)
		c := mdns.Client{Timeout: 2 * time.Second}
		m, _, err := c.Exchange(r, clusterDNS+":53")
		if err != nil {
			m = new(mdns.Msg).SetRcode(r, mdns.RcodeServerFailure)
		}
		_ = w.WriteMsg(m)
	})
	w := newWorld(t, "nameserver "+upstreamAddr+"\n", objects()...)
	w.run(t)
	w.synced(t)
	eventually.True(t, "the loop's being seen", func() bool {
		rows := w.server.Section(context.Background()).Rows
		return rows[2].State == "off" && strings.Contains(rows[2].Detail, "forwards back")
	})
	n := forwarded.Load()
	if got := text(ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)); got != "SERVFAIL" {
		t.Errorf("got %s", got)
	}
	if got := text(ask(t, clusterDNS, "udp", "web.default.svc.cluster.local.", mdns.TypeA)); !strings.Contains(got,
		"10.43.1.1") {
		t.Errorf("got %s", got)
	}
	if forwarded.Load() > n+1 || n > 50 { // one may have been on its way
		t.Errorf("%d queries went round", forwarded.Load())
	}
	// Put right, it is forwarded again.
	startUpstream(t, "192.0.2.54", answer)
	if err := os.WriteFile(w.resolv, []byte("nameserver 192.0.2.54\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.server.ResolversChanged()
	eventually.True(t, "the new resolver's being used", func() bool {
		return text(ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)) == "outside.example. A 198.51.100.7"
	})
}

func TestCorefileIsLoadedLiveAndABrokenOneIsNot(t *testing.T) {
	w := newWorld(t, "", objects()...)
	stop := w.run(t)
	w.synced(t)
	maps := w.client.CoreV1().ConfigMaps("kube-system")
	corefile := func(s string) *core.ConfigMap {
		return &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: "coredns", Namespace: "kube-system"},
			Data: map[string]string{"Corefile": s}}
	}
	base := ".:53 {\n kubernetes cluster.local\n prometheus\n %s\n}\n"
	said := func(word string) *core.ConfigMap {
		return corefile(fmt.Sprintf(base, "template IN TXT said.example {\n answer \"said.example. 1 IN TXT "+word+
			"\"\n }"))
	}
	is := func(word string) func() bool {
		return func() bool {
			return text(ask(t, clusterDNS, "udp", "said.example.", mdns.TypeTXT)) == `said.example. TXT "`+word+`"`
		}
	}
	if _, err := maps.Create(t.Context(), said("one"), meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "one", is("one"))
	// No query is lost while it is replaced, many times.
	quit, lost, asked := make(chan struct{}), atomic.Int32{}, atomic.Int32{}
	go func() {
		c := mdns.Client{Timeout: 2 * time.Second}
		for {
			select {
			case <-quit:
				return
			default:
			}
			asked.Add(1)
			if m, _, err := c.Exchange(new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA),
				clusterDNS+":53"); err != nil || len(m.Answer) != 1 {
				lost.Add(1)
			}
		}
	}()
	for i := range 10 {
		word := fmt.Sprint("n", i)
		if _, err := maps.Update(t.Context(), said(word), meta.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually.True(t, word, is(word))
	}
	close(quit)
	if lost.Load() > 0 {
		t.Errorf("%d of %d queries were lost", lost.Load(), asked.Load())
	}
	for _, bad := range []string{"nosuchplugin", "template IN TXT {\n answer \"{{\"\n }", "cache 0"} {
		if _, err := maps.Update(t.Context(), corefile(fmt.Sprintf(base, bad)), meta.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-w.events.Events:
			if !strings.Contains(e, "InvalidCorefile") {
				t.Error(e)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("no event")
		}
		if !is("n9")() {
			t.Error("the old one does not go on")
		}
		if rows := w.server.Section(t.Context()).Rows; rows[1].State != "invalid" {
			t.Error(rows)
		}
	}
	// The last good one is kept for a start without a server.
	stop()
	if st, err := os.Stat(w.state); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	w.client = fake.NewClientset()
	down := func(k8stesting.Action) (bool, apiruntime.Object, error) {
		return true, nil, errors.New("the server is away")
	}
	w.client.PrependReactor("*", "*", down)
	w.client.PrependWatchReactor("*", func(k8stesting.Action) (bool, watch.Interface, error) {
		return true, nil, errors.New("the server is away")
	})
	w.run(t)
	if !is("n9")() {
		t.Error("without a server, the kept configuration is not used")
	}
	if got := text(ask(t, clusterDNS, "udp", "web.default.svc.cluster.local.", mdns.TypeA)); got != "SERVFAIL" {
		t.Errorf("a name of the unknown cluster gives %s", got)
	}
}

func TestCustomConfigMap(t *testing.T) {
	w := newWorld(t, "", objects()...)
	w.run(t)
	maps := w.client.CoreV1().ConfigMaps("kube-system")
	cm := &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: "coredns-custom", Namespace: "kube-system"},
		Data: map[string]string{
			"a.override": "template IN TXT over.example {\n answer \"over.example. 1 IN TXT yes\"\n}",
			"b.server":   "server.example:53 {\n template IN TXT {\n answer \"{{ .Name }} 1 IN TXT yes\"\n }\n}",
		}}
	if _, err := maps.Create(t.Context(), cm, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"over.example.", "a.server.example."} {
		eventually.True(t, name, func() bool {
			return text(ask(t, clusterDNS, "udp", name, mdns.TypeTXT)) == name+` TXT "yes"`
		})
	}
	if err := maps.Delete(t.Context(), "coredns-custom", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "its going", func() bool {
		return text(ask(t, clusterDNS, "udp", "a.server.example.", mdns.TypeTXT)) == "SERVFAIL"
	})
}

func TestChangesOfTheClusterAreSeen(t *testing.T) {
	w := newWorld(t, "", objects()...)
	w.run(t)
	w.synced(t)
	svcs := w.client.CoreV1().Services("default")
	s, err := svcs.Get(t.Context(), "web", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s = s.DeepCopy()
	s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.43.9.9", []string{"10.43.9.9"}
	if _, err := svcs.Update(t.Context(), s, meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the new address", func() bool {
		return strings.HasSuffix(text(ask(t, clusterDNS, "udp", "web.default.svc.cluster.local.", mdns.TypeA)),
			" 10.43.9.9") &&
			text(ask(t, clusterDNS, "udp", "9.9.43.10.in-addr.arpa.", mdns.TypePTR)) != "" &&
			!strings.Contains(text(ask(t, clusterDNS, "udp", "1.1.43.10.in-addr.arpa.", mdns.TypePTR)), "web")
	})
	if err := svcs.Delete(t.Context(), "web", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "its end", func() bool {
		return text(ask(t, clusterDNS, "udp", "web.default.svc.cluster.local.", mdns.TypeA)) == "NXDOMAIN"
	})
}

func TestCleanupLeavesNothing(t *testing.T) {
	look := func() string {
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			// The kernel makes sure for a second that nobody else has a new link-local address.
			if b, _ := exec.Command("ip", "-6", "addr", "show", "tentative").CombinedOutput(); len(b) == 0 {
				break
			}
		}
		var out string
		for _, args := range [][]string{{"ip", "addr"}, {"ip", "route", "show", "table", "all"},
			{"ip", "-6", "route", "show", "table", "all"}, {"nft", "list", "ruleset"}} {
			b, _ := exec.Command(args[0], args[1:]...).CombinedOutput()
			out += string(b)
		}
		return out
	}
	if err := dns.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := look()
	w := newWorld(t, "", objects()...)
	stop := w.run(t)
	w.synced(t)
	for range 2 { // what a second run finds is not in its way
		stop()
		stop = w.run(t)
	}
	if err := w.server.RestoreAddresses(); err != nil {
		t.Fatal(err)
	}
	if look() == before {
		t.Fatal("nothing was set up, or ip and nft are missing")
	}
	stop()
	for range 2 {
		if err := dns.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := look(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestDefaultIsWhatEveryClusterGets: a node that has not yet heard of the cluster behaves like one that has.
func TestDefaultIsWhatEveryClusterGets(t *testing.T) {
	b, err := manifests.FS.ReadFile("dns.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(b), "\n---\n") {
		var cm core.ConfigMap
		if yaml.Unmarshal([]byte(doc), &cm) == nil && cm.Kind == "ConfigMap" {
			if cm.Data["Corefile"] != dns.DefaultCorefile("${CLUSTER_DOMAIN}") {
				t.Errorf("manifests/dns.yaml has\n%s", cm.Data["Corefile"])
			}
			return
		}
	}
	t.Fatal("no ConfigMap")
}

func BenchmarkQuery(b *testing.B) {
	w := newWorld(b, "", objects()...)
	w.run(b)
	w.synced(b)
	conn, err := mdns.Dial("udp", clusterDNS+":53")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	for b.Loop() {
		if err := conn.WriteMsg(new(mdns.Msg).SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.ReadMsg(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestIdle: a server that nobody asks costs nothing to speak of.
func TestIdle(t *testing.T) {
	startUpstream(t, upstreamAddr, answer)
	w := newWorld(t, "nameserver "+upstreamAddr+"\n", objects()...)
	w.run(t)
	w.synced(t)
	ask(t, clusterDNS, "udp", "outside.example.", mdns.TypeA)
	cpu := func() time.Duration {
		var ru syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	const span = 12 * time.Second // longer than the forwarder's tick of 10 s
	time.Sleep(time.Second)
	before := cpu()
	time.Sleep(span)
	used := cpu() - before
	t.Logf("%s of CPU in %s, %d goroutines", used, span, runtime.NumGoroutine())
	if used > span/100 {
		t.Errorf("%s of CPU in %s", used, span)
	}
}
