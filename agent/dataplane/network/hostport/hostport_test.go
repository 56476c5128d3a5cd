package hostport

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/dataplane/netfilter"
	"github.com/umiak-io/umiak/internal/testing/nettest"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a network namespace of their own, which ends with them.
func TestMain(m *testing.M) { os.Exit(testns.Run(m.Run)) }

// pod makes a pod behind a bridge, which answers on TCP port 8080 with what it sees as the client's address, and on
// UDP.
func pod(t *testing.T, bridge, gateway, addr string) {
	t.Helper()
	node, pod := nettest.Here(t, "node"), nettest.New(t, bridge)
	node.Bridge(t, bridge, gateway)
	t.Cleanup(func() { _ = netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: bridge}}) })
	pod.Plug(t, "eth0", node, bridge, addr)
	gw, _, _ := strings.Cut(gateway, "/")
	pod.Route(t, "0.0.0.0/0", gw)
	pod.Do(func() {
		nettest.ServeTCP(t, ":8080", func(c net.Conn) {
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			nettest.Say(host)(c)
		})
		nettest.ServeUDP(t, "udp4", ":8080", func(string, netip.Addr) string { return "udp" })
	})
}

func setAddr(t *testing.T, l netlink.Link, addr string) {
	t.Helper()
	a, err := netlink.ParseAddr(addr)
	must(t, err)
	must(t, netlink.AddrAdd(l, a))
	must(t, netlink.LinkSetUp(l))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func get(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	raw, err := io.ReadAll(c)
	return string(raw), err
}

func TestPortsLeadToThePodAndBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	up := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "up", TxQLen: -1}}
	must(t, netlink.LinkAdd(up))
	setAddr(t, up, "192.168.70.1/24")
	setAddr(t, up, "192.168.70.2/24")
	must(t, os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	pod(t, "brp", "10.42.0.1/24", "10.42.0.5/24")
	addr := netip.MustParseAddr("10.42.0.5")

	maps := []mapping{
		{proto: unix.IPPROTO_TCP, hostPort: 80, pod: addr, podPort: 8080},
		{proto: unix.IPPROTO_UDP, hostPort: 80, pod: addr, podPort: 8080},
		{proto: unix.IPPROTO_TCP, host: netip.MustParseAddr("192.168.70.2"), hostPort: 81, pod: addr, podPort: 8080},
	}
	must(t, install(t.Context(), "aaaa", maps))
	must(t, routeLocalnet(addr))
	must(t, install(t.Context(), "bbbb",
		[]mapping{{proto: unix.IPPROTO_TCP, hostPort: 90, pod: netip.MustParseAddr("10.42.0.6"), podPort: 8080}}))
	for _, to := range []string{"192.168.70.1:80", "192.168.70.2:80", "192.168.70.2:81", "127.0.0.1:80"} {
		from, err := get(to)
		if err != nil {
			t.Errorf("%s: %v", to, err)
		} else if strings.HasPrefix(from, "127.") {
			t.Errorf("%s: the pod sees %s", to, from)
		}
	}
	if _, err := get("192.168.70.1:81"); err == nil {
		t.Error("a port of one address answers on another")
	}
	c, err := net.Dial("udp", "192.168.70.1:80")
	must(t, err)
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err = c.Write([]byte("x"))
	must(t, err)
	b := make([]byte, 8)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "udp" {
		t.Errorf("udp: %v", err)
	}
	_ = c.Close()
	leavesTheHostItsOwn(t)
	comesBack(t, maps)
	if n, err := count("aaaa"); n != 3 || err != nil {
		t.Errorf("%d rules, %v", n, err)
	}
	for range 2 { // twice: removing what is gone is fine
		must(t, remove(t.Context(), "aaaa"))
	}
	if _, err := get("192.168.70.1:80"); err == nil {
		t.Error("still led to the pod")
	}
	if n, err := count("bbbb"); n != 1 || err != nil {
		t.Errorf("another container's rules: %d, %v", n, err)
	}
}

// leavesTheHostItsOwn: a port without hostIP does not take what programs of the host use among themselves.
func leavesTheHostItsOwn(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	setAddr(t, lo, "169.254.53.53/32")
	for _, a := range []string{"127.0.0.53:80", "169.254.53.53:80"} {
		stop := nettest.ServeTCP(t, a, nettest.Say("host"))
		if got, err := get(a); got != "host" {
			t.Errorf("%s: %q, %v: the pod has taken it", a, got, err)
		}
		stop()
	}
	must(t, install(t.Context(), "cccc",
		[]mapping{{proto: unix.IPPROTO_TCP, host: netip.MustParseAddr("127.0.0.9"), hostPort: 82,
			pod: netip.MustParseAddr("10.42.0.5"), podPort: 8080}}))
	if _, err := get("127.0.0.9:82"); err != nil {
		t.Errorf("a loopback address that is asked for: %v", err)
	}
	must(t, remove(t.Context(), "cccc"))
}

// comesBack: rules that somebody removes come back from what the plugin has written down; what has gone does not.
func comesBack(t *testing.T, maps []mapping) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hostports")
	conn, err := netfilter.Dial()
	must(t, err)
	defer conn.Close()
	if put, err := Restore(t.Context(), conn, dir); put || err != nil {
		t.Fatal(put, err)
	}
	netns := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(netns, nil, 0o644))
	c := &config{StateDir: dir}
	must(t, remove(t.Context(), "aaaa"))
	must(t, c.add(&skel.CmdArgs{ContainerID: "aaaa", Netns: netns}, maps))
	gone := state{Container: "dead", Netns: netns + "-gone", Ports: []port{maps[0].port()}}
	must(t, gone.write(dir))
	if put, err := Restore(t.Context(), conn, dir); put || err != nil {
		t.Errorf("restored without need: %v, %v", put, err)
	}
	for _, name := range []string{"flush ruleset", "flush table inet " + Table, "flush chain inet " + Table + " " +
		chainPorts,
		"delete table inet " + Table, "flush chain inet " + Table + " output"} {
		nettest.NFT(t, name)
		if _, err := get("192.168.70.1:80"); err == nil {
			t.Fatalf("%s: still led to the pod", name)
		}
		if put, err := Restore(t.Context(), conn, dir); !put || err != nil {
			t.Errorf("%s: %v, %v", name, put, err)
		}
		if _, err := get("192.168.70.1:80"); err != nil {
			t.Errorf("%s: does not come back: %v", name, err)
		}
		if n, err := count("aaaa"); n != len(maps) || err != nil {
			t.Errorf("%s: %d rules, %v", name, n, err)
		}
	}
	if n, err := count("dead"); n != 0 || err != nil {
		t.Errorf("a pod that is gone: %d rules, %v", n, err)
	}
	must(t, install(t.Context(), "bbbb",
		[]mapping{{proto: unix.IPPROTO_TCP, hostPort: 90, pod: netip.MustParseAddr("10.42.0.6"), podPort: 8080}}))
}

// TestPortsOfTheSystem: a pod that asks for a port of the system does not start, and what comes there goes to the
// system.
func TestPortsOfTheSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	nettest.ServeTCP(t, ":6443", nettest.Say("API server"))
	pod(t, "brs", "10.42.0.1/24", "10.42.0.5/24")
	const held = `"held":[{"protocol":"tcp","port":6443,"holder":"the API server"},{"protocol":"udp","port":8472,"holder":"the pods' network"}]`
	ask := func(held, port string) error {
		return add(&skel.CmdArgs{ContainerID: "eeee", IfName: "eth0", Netns: "/x",
			StdinData: []byte(`{"cniVersion":"1.0.0","name":"umiak","type":"portmap",` + held +
				`"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"},` + port +
				`]},` +
				result + `}`)})
	}
	const attack = `{"hostPort":6443,"containerPort":8080,"protocol":"tcp"}`
	// As it was: the pod takes it.
	must(t, ask("", attack))
	if got, _ := get("127.0.0.1:6443"); got == "API server" {
		t.Error("the attack has no effect without the list; this test shows nothing")
	}
	must(t, remove(t.Context(), "eeee"))
	for port, want := range map[string]string{
		attack: "hostPort :6443/TCP of this node belongs to the API server",
		`{"hostPort":6443,"containerPort":8080,"protocol":"TCP","hostIP":"127.0.0.1"}`:      "belongs to the API server",
		`{"hostPort":6443,"containerPort":8080,"protocol":"tcp","hostIP":"::"}`:             "belongs to the API server",
		`{"hostPort":8472,"containerPort":8080,"protocol":"udp"}`:                           "belongs to the pods' network",
		`{"hostPort":53,"containerPort":8080,"protocol":"udp","hostIP":"127.0.0.53"}`:       "name servers of this machine",
		`{"hostPort":225,"containerPort":8080,"protocol":"udp","hostIP":"169.254.53.53"}`:   "name servers of this machine",
		`{"hostPort":53,"containerPort":8080,"protocol":"tcp","hostIP":"::ffff:127.1.1.1"}`: "name servers of this machine",
		`{"hostPort":6443,"containerPort":8080,"protocol":"udp"}`:                           "",
		`{"hostPort":53,"containerPort":8080,"protocol":"udp"}`:                             "",
		`{"hostPort":53,"containerPort":8080,"protocol":"udp","hostIP":"127.0.0.1"}`:        "",
		`{"hostPort":0,"containerPort":6443,"protocol":"tcp"}`:                              "",
	} {
		err := ask(held+",", port)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", port, err)
		}
		if n, _ := count("eeee"); err != nil && n != 0 {
			t.Errorf("%s: refused, and %d ports lead to the pod", port, n)
		}
		if got, err := get("127.0.0.1:6443"); got != "API server" {
			t.Errorf("%s: at the API server's port: %q, %v", port, got, err)
		}
		must(t, remove(t.Context(), "eeee"))
	}
}

func TestRemoveWithoutTable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	must(t, remove(t.Context(), fmt.Sprintf("%064d", 1)))
}

const result = `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.42.0.5/24","interface":1},{"address":"fd00::5/64","interface":1}]}`

func TestParse(t *testing.T) {
	_, maps, err := parse([]byte(`{"cniVersion":"1.0.0","name":"umiak","type":"portmap","runtimeConfig":{"portMappings":[
		{"hostPort":80,"containerPort":8080,"protocol":"tcp"},{"hostPort":0,"containerPort":1,"protocol":"tcp"},
		{"hostPort":53,"containerPort":53,"protocol":"UDP","hostIP":"192.168.0.1"},
		{"hostPort":54,"containerPort":53,"protocol":"udp","hostIP":"0.0.0.0"}]},`+result+`}`), "eth0")
	must(t, err)
	var got []string
	for _, m := range maps {
		got = append(got, fmt.Sprintf("%d %v:%d>%v:%d", m.proto, m.host, m.hostPort, m.pod, m.podPort))
	}
	want := "6 invalid IP:80>10.42.0.5:8080,6 invalid IP:80>fd00::5:8080,17 192.168.0.1:53>10.42.0.5:53,17 invalid IP:54>10.42.0.5:53"
	if strings.Join(got, ",") != want {
		t.Errorf("got %s", strings.Join(got, ","))
	}
	for _, bad := range []string{`{`, `{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":0,"protocol":"tcp"}]}}`,
		`{"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":1,"protocol":"icmp"}]}}`} {
		if _, _, err := parse([]byte(bad), "eth0"); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]},` + result + `}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, maps, err := parse(raw, "eth0")
		if err != nil {
			return
		}
		for _, m := range maps {
			if !m.pod.IsValid() || m.hostPort == 0 || m.host.IsValid() && m.host.Is4() != m.pod.Is4() {
				t.Fatalf("%+v", m)
			}
			m.translate()
		}
	})
}
