package cleanup

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/layout"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in network and mount namespaces of their own, which end with them.
func TestMain(m *testing.M) {
	os.Exit(testns.Run(func() int {
		if os.Geteuid() == 0 {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}, unix.CLONE_NEWNS))
}

func dirs(t *testing.T) layout.Dirs {
	t.Helper()
	d := t.TempDir()
	return layout.Dirs{Data: d + "/data", Run: d + "/run"}
}

func mkdir(t *testing.T, p string) string {
	t.Helper()
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func tmpfs(t *testing.T, p string) {
	t.Helper()
	if err := unix.Mount("t", mkdir(t, p), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p, unix.MNT_DETACH) })
}

// shim starts a program that looks like a shim with one container, in a directory.
func shim(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & wait")
	cmd.Args[0] = "/x/containerd-shim-runc-v2"
	cmd.Dir = mkdir(t, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func alive(cmd *exec.Cmd) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat")
	return err == nil && !bytes.Contains(raw, []byte(") Z "))
}

func TestTakesAwayWhatIsOursAndNothingElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := dirs(t)
	other := mkdir(t, t.TempDir()+"/other")
	keep := filepath.Join(other, "keep")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}

	// Ours.
	j, err := host.OpenJournal(d.NodeState())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.Made(host.KindInterface, "cni0"), j.Set("net.ipv4.ip_forward", "1")); err != nil {
		t.Fatal(err)
	}
	ours := shim(t, filepath.Join(d.ContainerdState(), "io.containerd.runtime.v2.task/k8s.io/abc"))
	tmpfs(t, filepath.Join(d.ContainerdState(), "io.containerd.runtime.v2.task/k8s.io/abc/rootfs"))
	tmpfs(t, filepath.Join(d.Kubelet(), "pods/uid/volumes/v"))
	tmpfs(t, filepath.Join(d.Kubelet(), "pods/uid/volumes/v")) // twice on one place
	if err := os.Symlink(other, filepath.Join(mkdir(t, d.Run), "link")); err != nil {
		t.Fatal(err)
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "cni0", TxQLen: -1}}
	if err := netlink.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	for name, master := range map[string]int{"v0": br.Index, "w0": 0} {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1,
			MasterIndex: master}, PeerName: name + "p"}); err != nil {
			t.Fatal(err)
		}
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"umiak-proxy", "mine"} {
		c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: n})
	}
	c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "umiak-proxy"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	// Not ours.
	theirs := shim(t, filepath.Join(other, "bundle"))
	tmpfs(t, filepath.Join(other, "mnt"))

	// While it runs nothing is touched.
	release, err := instance.Acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cfg := Config{Dirs: d, Out: &out, Purge: true}
	if err := Run(t.Context(), cfg); !errors.Is(err, ErrRunning) || out.Len() != 0 || !alive(ours) {
		t.Fatalf("got %v, %s", err, out.String())
	}
	release()

	also := false
	cfg.Also = []func(context.Context) error{func(context.Context) error { also = true; return nil }}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("\n%s", out.String())
	for what, gone := range map[string]bool{
		"shim": !alive(ours), "data": missing(d.Data), "run": missing(d.Run), "the others' part": also,
		"cni0": noLink("cni0"), "veth on it": noLink("v0"),
	} {
		if !gone {
			t.Errorf("left: %s", what)
		}
	}
	for what, kept := range map[string]bool{
		"another engine's shim": alive(theirs), "a file behind a link": !missing(keep), "another veth": !noLink("w0"),
	} {
		if !kept {
			t.Errorf("taken away: %s", what)
		}
	}
	if _, below, _ := host.Mounts(other); len(below) != 1 {
		t.Errorf("mounts of others: %v", below)
	}
	tables, err := c.ListTables()
	if err != nil || len(tables) != 1 || tables[0].Name != "mine" {
		t.Errorf("tables %v, %v", tables, err)
	}
	if v, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(string(v)) != "0" {
		t.Error("sysctl not restored")
	}
	out.Reset()
	if err := Run(t.Context(), cfg); err != nil || out.Len() != 0 {
		t.Errorf("again: %v, %s", err, out.String())
	}
}

func missing(p string) bool { _, err := os.Lstat(p); return errors.Is(err, os.ErrNotExist) }
func noLink(n string) bool  { _, err := net.InterfaceByName(n); return err != nil }

// TestAwaitEnd: processes that live on are named, those that have ended are not, and the end of a context ends the
// wait.
func TestAwaitEnd(t *testing.T) {
	start := func(name string, args ...string) target {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return target{cmd.Process.Pid, name, fd}
	}
	lives, ends := start("sleep", "1000"), start("true")
	living, err := awaitEnd(t.Context(), []target{lives, ends}, 0)
	if err != nil || !slices.Contains(living, lives) {
		t.Errorf("at once: %v, %v", living, err)
	}
	if living, err := awaitEnd(t.Context(), []target{ends}, time.Minute); err != nil || len(living) > 0 {
		t.Errorf("one that ends: %v, %v", living, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if living, err := awaitEnd(ctx, []target{lives}, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, %v", living, err)
	}
}

// TestInterrupted: cleaning up stops between two removals, and cleaning up again removes the rest.
func TestInterrupted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := dirs(t)
	file := filepath.Join(mkdir(t, filepath.Join(d.Images(), "a/b/c/d/e/f")), "image.tar")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cfg := Config{Dirs: d, Out: &bytes.Buffer{}, Purge: true,
		Also: []func(context.Context) error{func(context.Context) error { cancel(); return nil }}}
	if err := Run(ctx, cfg); !errors.Is(err, context.Canceled) || missing(file) {
		t.Errorf("interrupted: %v; the file is missing: %t", err, missing(file))
	}
	if err := removeAll(ctx, d.Data, interruptDepth); !errors.Is(err, context.Canceled) || missing(file) {
		t.Errorf("interrupted later: %v; the file is missing: %t", err, missing(file))
	}
	cfg.Also = nil
	if err := Run(t.Context(), cfg); err != nil || !missing(d.Data) {
		t.Errorf("again: %v; the data directory is missing: %t", err, missing(d.Data))
	}
}

func TestDangerousDirectoriesAreRefused(t *testing.T) {
	for _, d := range []layout.Dirs{{Data: "/", Run: "/run/x"}, {Data: "/var/lib/x", Run: "/run"},
		{Data: "x/y", Run: "/run/x"}, {Data: "/var/lib/..", Run: "/run/x"}, {}} {
		if err := Run(t.Context(), Config{Dirs: d, Out: &bytes.Buffer{}, Purge: true}); err == nil ||
			!strings.Contains(err.Error(), "refuse") {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func TestDamagedNotesAreReportedAndKept(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := dirs(t)
	mkdir(t, d.Agent())
	if err := os.WriteFile(d.NodeState(), []byte(`{"made":{"path":["/"]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Run(t.Context(), Config{Dirs: d, Out: &bytes.Buffer{}, Purge: true})
	if !errors.Is(err, host.ErrJournal) || missing(d.NodeState()) {
		t.Fatalf("got %v", err)
	}
}

func TestOurResult(t *testing.T) {
	conf := base64.StdEncoding.EncodeToString([]byte(`{"plugins":[{"ipam":{"dataDir":"/run/umiak/cni"}}]}`))
	if !isOwnResult([]byte(`{"kind":"x","config":"`+conf+`"}`), "/run/umiak/cni") {
		t.Error("not seen as ours")
	}
	for _, raw := range []string{`{"config":"` + conf + `"`, `{}`, `[]`, ``} {
		if isOwnResult([]byte(raw), "/run/umiak/cni") {
			t.Errorf("%q is ours", raw)
		}
	}
	if isOwnResult([]byte(`{"config":"`+conf+`"}`), "/run/umiak") {
		t.Error("another node's is ours")
	}
}
