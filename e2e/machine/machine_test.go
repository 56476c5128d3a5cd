package machine_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/umiak-io/umiak/e2e/machine"
)

func make1(t *testing.T, o machine.Options) *machine.Machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	m, err := machine.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func run(t *testing.T, m *machine.Machine, script string) string {
	t.Helper()
	out, err := m.Run(t.Context(), "sh", "-euc", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestMachineSeesOnlyItself(t *testing.T) {
	m := make1(t, machine.Options{Name: "m1"})
	for script, want := range map[string]string{
		"hostname":                                      "m1",
		"ls -A /run | sort | xargs":                     "lock mount netns",
		"ls -A /var/lib /opt":                           "/opt:\n\n/var/lib:",
		"ls /sys/class/net | xargs":                     "eth0 lo",
		"cut -d: -f3 /proc/self/cgroup | sort -u":       "/",
		`p=$(ps -e -o comm=); echo "$p" | sort | xargs`: "ps sh sh sleep",
		"cat /etc/resolv.conf":                          "nameserver 10.77.0.1",
		"echo x > /etc/only-here; cat /etc/only-here":   "x",
	} {
		if got := run(t, m, script); got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	if _, err := os.Stat("/etc/only-here"); err == nil {
		t.Error("a file written inside is seen outside")
	}
	if b, err := os.ReadFile(m.Host("/etc/only-here")); err != nil || string(b) != "x\n" {
		t.Errorf("Host: %q, %v", b, err)
	}
	// Overlayfs works on the private /var/lib, as containerd needs.
	run(t, m, "cd /var/lib; mkdir l u w m; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m; touch m/x; umount m")
}

func TestMachinesOnOneLANReachEachOther(t *testing.T) {
	lan, err := machine.NewLAN(machine.LANOptions{})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := lan.Close(); err != nil {
			t.Error(err)
		}
	})
	a, b := make1(t, machine.Options{Name: "a", LAN: lan}), make1(t, machine.Options{Name: "b", LAN: lan})
	other := make1(t, machine.Options{Name: "other"})
	if other.IP != a.IP {
		t.Fatalf("LANs use the same addresses: %s, %s", other.IP, a.IP)
	}
	var l net.Listener
	if err := b.Do(func() (err error) { l, err = net.Listen("tcp", b.IP+":8000"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(c.RemoteAddr().String()))
			_ = c.Close()
		}
	}()
	c, err := a.Dial(t.Context(), "tcp", b.IP+":8000")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := c.Read(buf)
	if !strings.HasPrefix(string(buf[:n]), a.IP+":") {
		t.Fatalf("b saw %q", buf[:n])
	}
	if c, err := other.Dial(t.Context(), "tcp", other.IP+":8000"); err == nil {
		_ = c.Close()
		t.Fatal("reached a machine on another LAN")
	}
}

func TestPowerOffKillsAllAndKeepsDisks(t *testing.T) {
	m := make1(t, machine.Options{})
	run(t, m, "echo kept > /var/lib/file; sync; setsid sleep 1000 >/dev/null 2>&1 & touch /run/lost; mkdir /sys/fs/cgroup/pids/pods || true")
	if len(m.Processes()) == 0 {
		t.Fatalf("processes: %v", m.Processes())
	}
	if err := m.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := m.Boot(); err != nil {
		t.Fatal(err)
	}
	if got := run(t, m, "cat /var/lib/file; ls -A /run | xargs; ps -e -o args= | grep -c '[s]leep 1000' || true"); got != "kept\nlock mount netns\n0" {
		t.Fatalf("after a power cut: %q", got)
	}
}

func TestSnapshotFindsWhatWasLeft(t *testing.T) {
	m := make1(t, machine.Options{})
	before, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run(t, m, `ip link add left type bridge; ip addr add 192.0.2.1/24 dev left; nft add table ip left; mkdir /var/lib/d; mount -t tmpfs left /var/lib/d
		sysctl -qw net.ipv4.ip_forward=1; sleep 999 >/dev/null 2>&1 & for d in /sys/fs/cgroup/*/cgroup.procs; do mkdir ${d%/*}/left; done`)
	after, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	diff := strings.Join(before.Diff(after), "\n")
	for _, want := range []string{"links: bridge left", "addresses: 192.0.2.1/24", "nftables: table ip left",
		"mounts: tmpfs /var/lib/d", "files: /var/lib/d", "sysctls: net/ipv4/ip_forward = 1", "processes: sleep 999",
		"cgroups: "} {
		if !strings.Contains(diff, "+ "+want) {
			t.Errorf("no %q in\n%s", want, diff)
		}
	}
	if d := after.Diff(after); len(d) != 0 {
		t.Errorf("differs from itself: %v", d)
	}
}

// The test runs itself, makes a machine there, and is killed: nothing may be left once Sweep ran.
func TestDiesWithItsOwner(t *testing.T) {
	if os.Getenv("E2E_MAKE_AND_HANG") != "" {
		m := make1(t, machine.Options{Name: "orphan"})
		run(t, m, "setsid sleep 998 >/dev/null 2>&1 &")
		_, _ = os.Stdout.WriteString("\nMADE " + m.ID + "\n")
		select {}
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestDiesWithItsOwner$", "-test.v")
	cmd.Env = append(os.Environ(), "E2E_MAKE_AND_HANG=1")
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, buf := "", make([]byte, 4096)
	for id == "" {
		n, err := r.Read(buf)
		if _, rest, ok := strings.Cut(string(buf[:n]), "MADE "); ok {
			id = strings.TrimSpace(rest)
		} else if err != nil {
			t.Fatal("child ended")
		}
	}
	orphan, err := machine.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	if len(orphan.Processes()) == 0 {
		t.Fatal("no processes")
	}
	cancel()
	_ = cmd.Wait()
	if err := orphan.Destroy(); err != nil { // what Sweep does for each; others may sweep at the same time
		t.Fatal(err)
	}
	if err := machine.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/umiak-e2e-" + id); len(left) > 0 || exists(orphan.Dir) {
		t.Fatalf("left: %v, %s", left, orphan.Dir)
	}
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

// TestLongWires: frames take their time, some are lost, a machine that is cut off comes back.
func TestLongWires(t *testing.T) {
	const delay = 20 * time.Millisecond
	lan, err := machine.NewLAN(machine.LANOptions{Delay: delay, Loss: 0.2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lan.Close() })
	a, b := make1(t, machine.Options{Name: "a", LAN: lan}), make1(t, machine.Options{Name: "b", LAN: lan})
	var server net.PacketConn
	if err := b.Do(func() (err error) {
		server, err = net.ListenPacket("udp", b.IP+":7")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	c, err := a.Dial(t.Context(), "udp", b.IP+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers, least, n := 0, time.Hour, byte(0)
	echo := func() bool {
		n++
		begun := time.Now()
		if _, err := c.Write([]byte{n}); err != nil {
			return false
		}
		_ = c.SetReadDeadline(begun.Add(4 * delay))
		for got := make([]byte, 1); ; {
			if _, err := c.Read(got); err != nil {
				return false
			}
			if got[0] == n { // not a late answer to one before
				least = min(least, time.Since(begun))
				return true
			}
		}
	}
	for range 50 {
		if echo() {
			answers++
		}
	}
	if answers == 0 || answers == 50 || least < 2*delay {
		t.Errorf("%d of 50 answered, the fastest after %s", answers, least)
	}
	if err := lan.Cut(b); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if echo() {
			t.Error("a machine that is cut off answers")
		}
	}
	if err := lan.Mend(b); err != nil {
		t.Fatal(err)
	}
	for i := 0; !echo(); i++ {
		if i == 100 {
			t.Fatal("it does not come back")
		}
	}
}
