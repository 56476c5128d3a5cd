package host_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
)

func TestAHeldPortNamesItsHolder(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("is held by %s (process %d): stop it, or set kubelet-port", strings.TrimSpace(string(comm)),
		os.Getpid())
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			t.Logf("%s: %v", listen, err) // a kernel without IPv6
			continue
		}
		defer l.Close()
		err = host.TryPort(t.Context(), "tcp", l.Addr().String(), "set kubelet-port")
		if !errors.Is(err, host.ErrPortHeld) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", listen, err)
		}
	}
	// The same number of the other protocol is another port. Somebody else may hold that one just now.
	for attempt := 1; ; attempt++ {
		u, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		if err := host.TryPort(t.Context(), "udp", u.LocalAddr().String(), "set kubelet-port"); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Error(err)
		}
		err = host.TryPort(t.Context(), "tcp", u.LocalAddr().String(), "")
		if err == nil {
			break
		}
		if attempt == 5 {
			t.Fatal(err)
		}
	}
}

func TestTryingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(host.TryDisk(filepath.Join(dir, "not", "there")), host.TryInotify(2),
		host.TryExec(t.Context(), "/bin/true"), host.TryExecIn(filepath.Join(dir, "x"))); err != nil {
		t.Error(err)
	}
	if l, _ := os.ReadDir(dir); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
}

// TestNoInotifyInstance runs in a user namespace, which has a limit of its own: the machine's is everybody's.
func TestNoInotifyInstance(t *testing.T) {
	const again = "HOST_TEST_NO_INOTIFY"
	if os.Getenv(again) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoInotifyInstance$")
		cmd.Env = append(os.Environ(), again+"=yes")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if !host.InUserNamespace() {
		t.Fatal("the user namespace is not seen") // and the limit would be the machine's
	}
	// Not fs.inotify.max_user_instances, which is the machine's wherever it is written.
	if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte("3"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := host.TryInotify(3); err != nil {
		t.Error(err)
	}
	if err := host.TryInotify(4); err == nil || !strings.Contains(err.Error(), "3 inotify instances are left of the ") {
		t.Error(err)
	}
}

// TestADiskThatIsOfNoUse: full, read-only, without programs.
func TestADiskThatIsOfNoUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	mount := func(flags uintptr, options string) {
		t.Helper()
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	program := func() string {
		t.Helper()
		raw, err := os.ReadFile("/bin/true")
		if err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, "true")
		if err := os.WriteFile(p, raw, 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	mount(unix.MS_NOEXEC, "size=4m")
	if err := host.TryExec(t.Context(), program()); err == nil ||
		!strings.Contains(err.Error(), dir+" is on a file system that is mounted noexec") {
		t.Error(err)
	}
	if err := host.TryExecIn(filepath.Join(dir, "agent", "bundle")); err == nil ||
		!strings.Contains(err.Error(), dir+" is on a file system that is mounted noexec") {
		t.Error(err)
	}
	mount(0, "size=32k")
	if err := host.TryDisk(dir); err == nil || !strings.Contains(err.Error(), "is full") {
		t.Error(err)
	}
	mount(unix.MS_RDONLY, "")
	if err := host.TryDisk(dir); err == nil || !strings.Contains(err.Error(), "is read-only") {
		t.Error(err)
	}
}
