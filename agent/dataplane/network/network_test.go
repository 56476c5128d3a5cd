package network

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/agent/dataplane/netfilter/reconcile"
	"github.com/umiak-io/umiak/agent/dataplane/peerports"
	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own, which ends with them.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// uplink gives the namespace an interface with the node's address.
func uplink(t *testing.T, name, addr string) {
	t.Helper()
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, TxQLen: -1}, PeerName: name + "p"}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkAdd(l), netlink.AddrAdd(l, a), netlink.LinkSetUp(l)); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName(name + "p")
	if err != nil || netlink.LinkSetUp(peer) != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(l) })
}

func start(t *testing.T, cfg Config) (ready <-chan struct{}, stop func() error) {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- n.Run(ctx, func() {
			select {
			case <-r:
			default:
				close(r)
			}
		})
	}()
	stop = func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("does not stop")
		}
	}
	return r, stop
}

func config(t *testing.T, backend string, client *fake.Clientset) Config {
	t.Helper()
	dir := t.TempDir()
	d := layout.Dirs{Data: dir + "/data", Run: dir + "/run"}
	if err := os.MkdirAll(d.Agent(), 0o700); err != nil {
		t.Fatal(err)
	}
	j, err := host.OpenJournal(d.NodeState())
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		NodeName: "n1", NodeIPs: []netip.Addr{netip.MustParseAddr("192.168.77.1")}, Backend: backend,
		ClusterCIDR: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, Dirs: d,
		Watch: client, Self: client, Journal: j, Log: slog.New(slog.DiscardHandler), ServiceRoutes: true,
		Tables: reconcile.NewTables(slog.Default(), []string{Table, peerports.Table}),
	}
}

func tables(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	all, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, x := range all {
		out = append(out, x.Name)
	}
	return strings.Join(out, " ")
}

// The whole path on one node and the way to a second one, with flannel's default backend.
func TestVXLAN(t *testing.T) {
	needRoot(t)
	uplink(t, "up0", "192.168.77.1/24")
	client := fake.NewClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	cfg := config(t, VXLAN, client)
	ready, stop := start(t, cfg)
	ctx := t.Context()

	select {
	case <-ready:
		t.Fatal("ready without a pod range")
	case <-time.After(50 * time.Millisecond):
	}
	begun := time.Now()
	n, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Spec.PodCIDR, n.Spec.PodCIDRs = "10.42.3.0/24", []string{"10.42.3.0/24"}
	if _, err := client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	<-ready
	t.Logf("ready %v after the node got its range", time.Since(begun))

	raw, err := os.ReadFile(filepath.Join(cfg.Dirs.CNIConfig(), confName))
	if err != nil {
		t.Fatal(err)
	}
	var conf struct {
		Plugins []struct {
			Type string
			MTU  int
			IPAM struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal(raw, &conf); err != nil || conf.Plugins[0].MTU != 1450 ||
		conf.Plugins[0].IPAM.Ranges[0][0].Subnet != "10.42.3.0/24" {
		t.Fatalf("%v: %s", err, raw)
	}
	if got := tables(t); !slices.Contains(strings.Fields(got), Table) {
		t.Fatalf("tables: %s", got)
	}
	l, err := net.InterfaceByName("flannel.1")
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the node tells the others", func() bool {
		n, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && n.Annotations[annPublicIP] == "192.168.77.1" && n.Annotations[annManaged] == "true" &&
			strings.Contains(n.Annotations[annData], l.HardwareAddr.String())
	})

	// A second node appears and goes.
	other := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2", Annotations: map[string]string{
		annManaged: "true", annType: "vxlan", annPublicIP: "192.168.77.2",
		annData: `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02"}`,
	}}, Spec: v1.NodeSpec{PodCIDRs: []string{"10.42.4.0/24"}}}
	if _, err := client.CoreV1().Nodes().Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR("10.42.4.0/24")
	routed := func() bool {
		r, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		return err == nil && len(r) == 1
	}
	eventually.True(t, "a route to the second node", routed)
	// Nodes with ranges that are not theirs come before one that has its own: when that one's route is there, theirs
	// are not.
	count := func() int {
		r, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: l.Index},
			netlink.RT_FILTER_OIF)
		if err != nil {
			t.Fatal(err)
		}
		return len(slices.DeleteFunc(r, func(r netlink.Route) bool { return r.Gw == nil }))
	}
	// So do nodes with the second one's key in other words, and with none, by which flannel would wait for a minute.
	for i, liar := range []struct{ cidr, data string }{
		{cidr: "203.0.113.0/24"}, {cidr: "192.168.77.100/32"}, {cidr: "10.42.4.2/32"}, {cidr: "10.42.0.0/16"},
		{"10.42.6.0/24", `{"VNI":1,"VtepMAC":"AA-00-00-00-00-02"}`},
		{"10.42.7.0/24", `{"VNI":1,"VtepMAC":"aa:00:00:00:00:02","PublicKey":"x"}`}, {"10.42.8.0/24", `{}`},
		{cidr: "10.42.5.0/24"},
	} {
		cidr, data := liar.cidr, cmp.Or(liar.data, `{"VNI":1,"VtepMAC":"aa:00:00:00:01:0`+strconv.Itoa(i)+`"}`)
		liar := other.DeepCopy()
		liar.Name, liar.Spec.PodCIDRs = "liar"+strconv.Itoa(i), []string{cidr}
		liar.CreationTimestamp = metav1.NewTime(time.Now().Add(time.Duration(i) * time.Second))
		liar.Annotations[annPublicIP] = "192.168.77.1" + strconv.Itoa(i)
		liar.Annotations[annData] = data
		if _, err := client.CoreV1().Nodes().Create(ctx, liar, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually.True(t, "the second route", func() bool { return count() > 1 })
	if n := count(); n != 2 || !routed() {
		t.Errorf("%d routes by the overlay, want those to the two nodes with ranges of their own", n)
	}
	fdb, err := netlink.NeighList(l.Index, unix.AF_BRIDGE)
	if err != nil || !slices.ContainsFunc(fdb, func(n netlink.Neigh) bool {
		return n.HardwareAddr.String() == "aa:00:00:00:00:02" && n.IP.String() == "192.168.77.2"
	}) {
		t.Errorf("what is for the second node goes elsewhere: %v, %v", fdb, err)
	}
	if err := client.CoreV1().Nodes().Delete(ctx, "n2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the route to go", func() bool { return !routed() })

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := net.InterfaceByName("flannel.1"); err != nil {
		t.Fatal("the overlay has gone with umiak, and with it the pods' connections")
	}

	// The next start needs no API server, and keeps the tunnel's address.
	down := fake.NewClientset()
	cfg.Watch, cfg.Self = down, down
	ready, stop = start(t, cfg)
	<-ready
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s := cfg.Journal.State()
	if len(s.Made[host.KindTable]) != 2 || len(s.Made[host.KindInterface]) != 3 {
		t.Fatalf("journal: %+v", s)
	}
	_ = netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1", Index: l.Index}})
}

func TestHostGWAndNone(t *testing.T) {
	needRoot(t)
	uplink(t, "up1", "192.168.77.1/24")
	client := fake.NewClientset(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Spec: v1.NodeSpec{PodCIDRs: []string{"10.42.3.0/24"}}},
		&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2",
			Annotations: map[string]string{annManaged: "true", annType: "host-gw", annPublicIP: "192.168.77.2",
				annData: "null"}},
			Spec: v1.NodeSpec{PodCIDRs: []string{"10.42.4.0/24"}}})
	cfg := config(t, HostGW, client)
	ready, stop := start(t, cfg)
	<-ready
	_, dst, _ := net.ParseCIDR("10.42.4.0/24")
	eventually.True(t, "a route by the second node", func() bool {
		r, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: dst}, netlink.RT_FILTER_DST)
		return err == nil && len(r) == 1 && r[0].Gw.String() == "192.168.77.2"
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	cfg.Backend = None
	ready, stop = start(t, cfg)
	<-ready
	if _, err := os.Stat(filepath.Join(cfg.Dirs.CNIConfig(), confName)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("our configuration stands before the user's: %v", err)
	}
	if out, err := exec.Command("nft", "list", "table", "inet", Table).CombinedOutput(); err == nil &&
		strings.Contains(string(out), "masquerade") {
		t.Errorf("rules for pod ranges of another network are left:\n%s", out)
	}
	unusedServiceIsRejected(t)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// With another service proxy as well there is nothing to do.
	cfg.ServiceRoutes = false
	ready, stop = start(t, cfg)
	<-ready
	if got := tables(t); strings.Contains(got, netfilter.Prefix) {
		t.Errorf("tables are left: %s", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// unusedServiceIsRejected sends from a pod to an address of Services that no Service has. The node routes it to its
// loopback interface, where it would go round until its hops are used up. The answer must be that there is no route.
func unusedServiceIsRejected(t *testing.T) {
	t.Helper()
	const service = "10.43.9.9:80"
	ran := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ran("link", "set", "dev", "lo", "up")
	ran("route", "replace", "10.43.0.0/16", "dev", "lo", "scope", "link") // as agent/dataplane/serviceroute does
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // the thread leaves its namespaces, and ends with the goroutine unless it comes back
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	pod, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	back := func() {
		if err := netns.Set(home); err != nil {
			t.Fatal(err)
		}
	}
	back()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "theirs", TxQLen: -1}, PeerName: "eth0",
		PeerNamespace: netlink.NsFd(pod)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(veth)
	ran("address", "add", "10.99.0.1/24", "dev", "theirs")
	ran("link", "set", "dev", "theirs", "up")
	if err := netns.Set(pod); err != nil {
		t.Fatal(err)
	}
	ran("address", "add", "10.99.0.2/24", "dev", "eth0")
	ran("link", "set", "dev", "eth0", "up")
	ran("route", "add", "default", "via", "10.99.0.1")
	c, err := net.DialTimeout("tcp", service, 5*time.Second)
	if err == nil {
		_ = c.Close()
	}
	back()
	runtime.UnlockOSThread()
	if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("a pod that asks an address which no Service has: %v", err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	if _, err := New(Config{Backend: "udp", Log: slog.New(slog.DiscardHandler)}); err == nil ||
		!strings.Contains(err.Error(), "flannel-backend") {
		t.Fatalf("got %v", err)
	}
	needRoot(t)
	n, err := New(Config{Backend: VXLAN, Iface: "nope0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.external(); err == nil || !strings.Contains(err.Error(),
		"flannel-iface: there is no interface nope0") {
		t.Fatalf("got %v", err)
	}
}
