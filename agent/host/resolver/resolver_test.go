package resolver

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a mount namespace of their own.
func TestMain(m *testing.M) {
	os.Exit(testns.Run(func() int {
		if os.Geteuid() == 0 {
			_ = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		return m.Run()
	}, syscall.CLONE_NEWNS))
}

var clusterDNS = []netip.Addr{netip.MustParseAddr("10.43.0.10")}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain := write("plain", "# x\nnameserver 192.168.0.1\nnameserver fe80::1%eth0\nsearch lan")
	stub := write("stub", "nameserver 127.0.0.53\noptions edns0\n")
	real := write("real", "nameserver 9.9.9.9\n")
	mixed := write("mixed", "nameserver ::1\nnameserver 10.0.0.1\nsearch lan\n")
	for _, c := range []struct {
		name, asked, etc, behind string
		pods, host, remark       string
	}{
		{name: "plain", etc: plain, behind: real, pods: "# x\nnameserver 192.168.0.1\nsearch lan\n",
			host: "nameserver 192.168.0.1\nnameserver fe80::1%eth0\n"},
		{name: "systemd-resolved", etc: stub, behind: real, pods: "nameserver 9.9.9.9\n", host: "nameserver 9.9.9.9\n"},
		{name: "systemd-resolved without servers", etc: stub, behind: stub,
			pods: "options edns0\nnameserver 10.43.0.10\n", host: "nameserver 127.0.0.53\n",
			remark: "no server that pods can reach"},
		{name: "dnsmasq", etc: stub, pods: "options edns0\nnameserver 10.43.0.10\n", host: "nameserver 127.0.0.53\n",
			remark: "no server that pods can reach"},
		{name: "both", etc: mixed, pods: "nameserver 10.0.0.1\nsearch lan\n",
			host: "nameserver ::1\nnameserver 10.0.0.1\n"},
		{name: "none at all", etc: dir + "/no", pods: "nameserver 10.43.0.10\n", remark: "names no server"},
		{name: "asked for", asked: stub, etc: plain, behind: real, pods: "options edns0\nnameserver 10.43.0.10\n",
			host: "nameserver 127.0.0.53\n", remark: "no server that pods can reach"},
		{name: "asked for and not there", asked: dir + "/no", etc: plain, pods: "nameserver 10.43.0.10\n",
			remark: "no such file"},
	} {
		f := find(c.asked, c.etc, c.behind)
		if pods, host := string(f.forPods(clusterDNS)), string(f.forHost()); pods != c.pods || host != c.host {
			t.Errorf("%s: pods %q, host %q", c.name, pods, host)
		}
		if !strings.Contains(f.Remark, c.remark) || c.remark == "" && f.Remark != "" {
			t.Errorf("%s: %q", c.name, f.Remark)
		}
	}
}

func FuzzForPods(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\nnameserver 1.1.1.1\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		found := Found{raw: raw, Pods: usable(nameservers(raw))}
		all := nameservers(found.forPods(clusterDNS))
		want := found.Pods
		if len(want) == 0 {
			want = clusterDNS
		}
		if !slices.Equal(all, want) {
			t.Fatalf("%q: %v", raw, all)
		}
	})
}

// TestChangesAreSeen goes through the ways in which a resolv.conf changes.
func TestChangesAreSeen(t *testing.T) {
	dir := t.TempDir()
	etc, run := filepath.Join(dir, "etc"), filepath.Join(dir, "run")
	if err := errors.Join(os.Mkdir(etc, 0o755), os.Mkdir(run, 0o755)); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	changed := make(chan struct{}, 100)
	r := New(Config{PodFile: dir + "/pods", HostFile: dir +
		"/host", ClusterDNS: clusterDNS, Changed: func() { changed <- struct{}{} }, Log: slog.New(slog.DiscardHandler)})
	r.etc, r.behind = etc+"/resolv.conf", run+"/systemd/resolve/resolv.conf"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ended <- r.Run(ctx, func() { close(ready) }) }()
	<-ready
	becomes := func(what, pods string) {
		t.Helper()
		for end := time.After(20 * time.Second); ; {
			got, _ := os.ReadFile(dir + "/pods")
			if string(got) == pods {
				return
			}
			select {
			case <-changed:
			case err := <-ended:
				t.Fatal(err)
			case <-end:
				t.Fatalf("%s: pods still get %q, want %q", what, got, pods)
			}
		}
	}
	becomes("nothing known", "nameserver 10.43.0.10\n")
	write(r.etc, "nameserver 192.0.2.1\n")
	becomes("a file comes", "nameserver 192.0.2.1\n")
	write(r.etc, "nameserver 192.0.2.2\n")
	becomes("written in place", "nameserver 192.0.2.2\n")
	write(etc+"/new", "nameserver 192.0.2.3\n")
	if err := os.Rename(etc+"/new", r.etc); err != nil {
		t.Fatal(err)
	}
	becomes("replaced", "nameserver 192.0.2.3\n")
	write(r.etc, "nameserver 127.0.0.53\n")
	becomes("a stub", "nameserver 10.43.0.10\n")
	if err := os.MkdirAll(filepath.Dir(r.behind), 0o755); err != nil {
		t.Fatal(err)
	}
	write(r.behind, "nameserver 192.0.2.4\n")
	becomes("the real servers behind the stub, in a folder that is new", "nameserver 192.0.2.4\n")
	write(run+"/other", "nameserver 192.0.2.5\n")
	if err := errors.Join(os.Remove(r.etc), os.Symlink("../run/other", r.etc)); err != nil {
		t.Fatal(err)
	}
	becomes("a link", "nameserver 192.0.2.5\n")
	write(run+"/other", "nameserver 192.0.2.6\n")
	becomes("the target of the link", "nameserver 192.0.2.6\n")
	if os.Geteuid() == 0 {
		outside := t.TempDir() + "/resolv.conf"
		write(outside, "nameserver 192.0.2.7\n")
		if err := errors.Join(os.Remove(r.etc), os.WriteFile(r.etc, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		becomes("an empty file, and the real servers", "nameserver 192.0.2.4\n")
		if err := unix.Mount(outside, r.etc, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(r.etc, unix.MNT_DETACH) })
		becomes("a single file mounted over it", "nameserver 192.0.2.7\n")
		write(outside, "nameserver 192.0.2.8\n")
		becomes("the mounted file written elsewhere", "nameserver 192.0.2.8\n")
		if err := unix.Unmount(r.etc, 0); err != nil {
			t.Fatal(err)
		}
		becomes("the mount taken away", "nameserver 192.0.2.4\n")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
