package folders

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/umiak-io/umiak/agent/host"
	"github.com/umiak-io/umiak/internal/testing/testns"
)

// TestMain runs the tests in a mount namespace of their own, which ends with them.
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

type bed struct {
	*testing.T
	dir string
	j   *host.Journal
	Folder
}

// newBed is a machine whose root is shared or not, as both occur; folders are the kubelet's root or the logs.
func newBed(t *testing.T, shared bool, f Folder) *bed {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b := &bed{T: t, dir: t.TempDir()}
	b.mount(b.dir, b.dir, unix.MS_BIND)
	if shared {
		b.mount("", b.dir, unix.MS_SHARED)
	}
	t.Cleanup(func() {
		_, below, _ := host.Mounts(b.dir)
		for _, m := range below {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		}
	})
	f.Data, f.At = filepath.Join(b.dir, "data/agent/kubelet"), filepath.Join(b.dir, "var/lib/kubelet")
	b.Folder = f
	var err error
	b.j, err = host.OpenJournal(filepath.Join(b.dir, "state.json"))
	b.must(err)
	return b
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) mount(what, at string, flags uintptr) {
	b.Helper()
	fs := ""
	if flags == 0 {
		fs = "tmpfs"
	}
	b.must(unix.Mount(what, at, fs, flags, ""))
	if what != "" {
		b.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
}

func (b *bed) file(p ...string) string {
	b.Helper()
	name := filepath.Join(p...)
	b.must(errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte("x"), 0o600)))
	return name
}

func (b *bed) folder(p ...string) string {
	b.Helper()
	name := filepath.Join(p...)
	b.must(os.MkdirAll(name, 0o755))
	return name
}

func (b *bed) mounted(dir string) []string {
	b.Helper()
	at, below, err := host.Mounts(dir)
	b.must(err)
	var out []string
	for _, m := range append(at, below...) {
		out = append(out, m.Mountpoint)
	}
	return out
}

func there(p ...string) bool { _, err := os.Lstat(filepath.Join(p...)); return err == nil }

func both(t *testing.T, test func(b *bed)) {
	for name, shared := range map[string]bool{"shared root": true, "private root": false} {
		t.Run(name, func(t *testing.T) {
			test(newBed(t, shared, Folder{Mode: 0o750, foreign: kubeletRootInUse, migrate: migrateDevicePlugins}))
		})
	}
}

func TestShownAndHidden(t *testing.T) {
	both(t, func(b *bed) {
		b.file(b.Data, "a")
		b.must(b.Show(b.j))
		b.must(b.Show(b.j))
		if !there(b.At, "a") || len(b.mounted(b.At)) != 1 {
			b.Fatalf("mounts: %q", b.mounted(b.At))
		}
		at, _, err := host.Mounts(b.At)
		b.must(err)
		if !strings.Contains(at[0].Optional, "shared:") {
			b.Errorf("what is mounted there does not reach pods: %q", at[0].Optional)
		}
		if up, _, err := host.Mounts(b.dir); err != nil ||
			strings.Contains(up[0].Optional, "shared:") != strings.Contains(b.Name(), "shared") {
			b.Errorf("the mount around it was changed: %q, %v", up[0].Optional, err)
		}
		// A volume is mounted once.
		b.mount("t", b.folder(b.At, "pods/u/v"), 0)
		if got := b.mounted(b.dir); len(got) != 3 {
			b.Errorf("mounts: %q", got)
		}
		if made := b.j.State().Made[host.KindPath]; len(made) != 1 || made[0] != b.At {
			b.Errorf("journal: %q", made)
		}
		var said []string
		b.must(b.Hide(func(m string) { said = append(said, m) }))
		b.must(b.Hide(func(m string) { said = append(said, m) }))
		if len(said) != 1 || len(b.mounted(b.At)) != 0 || !there(b.Data, "a") {
			b.Errorf("hidden: %q, left: %q", said, b.mounted(b.At))
		}
	})
}

// A build of before had its volumes mounted below the data, on a root that is not shared below a mount of the data on
// themselves: they are seen at both places, and end at both, so that either build can go on.
func TestTakesOverMountsOfBefore(t *testing.T) {
	both(t, func(b *bed) {
		b.folder(b.Data)
		if !strings.Contains(b.Name(), "shared") {
			b.mount(b.Data, b.Data, unix.MS_BIND)
			b.mount("", b.Data, unix.MS_SHARED)
		}
		vol := b.folder(b.Data, "pods/u/v")
		b.mount("t", vol, 0)
		b.file(vol, "token")
		b.must(b.Show(b.j))
		if !there(b.At, "pods/u/v/token") {
			b.Fatal("the volume is not seen")
		}
		b.must(unix.Unmount(filepath.Join(b.At, "pods/u/v"), 0))
		if there(vol, "token") {
			b.Error("the volume is still mounted where it was")
		}
		b.must(os.Remove(vol))
		b.mount("t", b.folder(b.At, "pods/w/v"), 0)
		b.file(b.At, "pods/w/v/token")
		if !there(b.Data, "pods/w/v/token") {
			b.Error("the build of before would not find a new volume")
		}
	})
}

func TestADiskInTheDataStays(t *testing.T) {
	both(t, func(b *bed) {
		disk := b.folder(b.Data, "pods")
		b.mount("t", disk, 0)
		b.file(disk, "mine")
		b.must(b.Show(b.j))
		if !there(b.At, "pods/mine") {
			b.Error("the disk is not seen")
		}
		b.must(b.Hide(func(string) {}))
		if !there(disk, "mine") || len(b.mounted(b.At)) != 0 {
			b.Error("the disk was unmounted")
		}
	})
}

func TestAnotherKubeletsFolder(t *testing.T) {
	for name, c := range map[string]struct {
		make  func(b *bed)
		wants string // in the error; "" is none
	}{
		"nothing":       {func(*bed) {}, ""},
		"empty":         {func(b *bed) { b.folder(b.At) }, ""},
		"an empty disk": {func(b *bed) { b.mount("t", b.folder(b.At), 0); b.folder(b.At, "lost+found") }, ""},
		"a driver's folder": {func(b *bed) {
			b.folder(b.At, "plugins/x")
			b.file(b.At,
				"device-plugins/kubelet_internal_checkpoint")
		}, ""},
		"kubeadm":  {func(b *bed) { b.file(b.At, "config.yaml") }, "config.yaml"},
		"pods":     {func(b *bed) { b.file(b.At, "pods/u/etc-hosts") }, "etc-hosts"},
		"a volume": {func(b *bed) { b.mount("t", b.folder(b.At, "pods/u/v"), 0) }, "pods/u/v is mounted"},
		"behind a link": {func(b *bed) {
			b.file(b.dir, "snap/cpu_manager_state")
			b.folder(filepath.Dir(b.At))
			b.must(os.Symlink(filepath.Join(b.dir, "snap"), b.At))
		}, "cpu_manager_state"},
		"another data directory's": {func(b *bed) {
			b.file(b.dir, "old/agent/kubelet/cpu_manager_state")
			b.folder(b.At)
			b.mount(filepath.Join(b.dir, "old/agent/kubelet"), b.At, unix.MS_BIND)
		}, "old/agent/kubelet"},
		"around the data": {func(b *bed) { b.Data = b.folder(b.At, "umiak/agent/kubelet") }, "data-dir"},
		"a link to the data": {func(b *bed) {
			b.folder(filepath.Dir(b.At))
			b.file(b.Data, "cpu_manager_state")
			b.must(os.Symlink(b.Data, b.At))
		}, ""},
		"removed data": {func(b *bed) {
			old := b.folder(b.dir, "old")
			b.folder(b.At)
			b.mount(old, b.At, unix.MS_BIND)
			b.must(os.Remove(old))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(b *bed) {
				c.make(b)
				for _, err := range []error{b.Check(), b.Show(b.j)} {
					if c.wants == "" && err != nil || c.wants != "" &&
						(err == nil || !strings.Contains(err.Error(), c.wants) || strings.Contains(err.Error(), "\n")) {
						b.Errorf("got %v", err)
					}
				}
				if shown, err := b.Shown(); err != nil || shown != (c.wants == "") {
					b.Errorf("shown: %v, %v", shown, err)
				}
			})
		})
	}
}

func TestLogsThatSomebodyWrites(t *testing.T) {
	b := newBed(t, true, Folder{Mode: 0o755, foreign: logsInUse})
	name := b.file(b.At, "default_web_uid/c/0.log")
	read, err := os.Open(name) // a collector
	b.must(err)
	defer read.Close()
	b.must(b.Check())
	w, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	b.must(err)
	if err := b.Check(); !errors.Is(err, ErrForeign) ||
		!strings.Contains(err.Error(), fmt.Sprintf("process %d ", os.Getpid())) {
		b.Errorf("got %v", err)
	}
	b.must(w.Close())
	b.must(b.Show(b.j))
	b.must(b.Hide(func(string) {}))
	if !there(name) {
		b.Error("the logs of before are gone")
	}
}

// Plugins that run have the folder itself mounted: it has to be the same one afterwards.
func TestDevicePluginsComeAlong(t *testing.T) {
	both(t, func(b *bed) {
		from := filepath.Join(b.At, "device-plugins")
		b.file(from, "kubelet_internal_checkpoint")
		b.must(b.j.Made(host.KindPath, from, b.At))
		was, err := os.Stat(from)
		b.must(err)
		b.must(b.Show(b.j))
		is, err := os.Stat(from)
		b.must(err)
		if !os.SameFile(was, is) || !there(b.Data, "device-plugins/kubelet_internal_checkpoint") {
			b.Error("it is another folder")
		}
	})
}

func TestMountedElsewhere(t *testing.T) {
	b := newBed(t, false, Folder{Mode: 0o755, foreign: logsInUse})
	b.must(b.Show(b.j))
	other := b.folder(b.dir, "other")
	// Another node, and a program that has got a copy of our mounts.
	for script, want := range map[string]bool{"": false, "umount " + b.At + "; mount --bind " + other + " " +
		b.At: true, "umount " + b.At: false} {
		cmd := exec.CommandContext(t.Context(), "unshare", "-m", "sh", "-euc", script+"\necho; read -r _")
		in, err := cmd.StdinPipe()
		b.must(err)
		out, err := cmd.StdoutPipe()
		b.must(err)
		b.must(cmd.Start())
		_, err = out.Read(make([]byte, 1))
		b.must(err)
		if yes, err := host.MountedElsewhere(b.At, b.Data); err != nil || yes != want {
			b.Errorf("%q: got %v, %v", script, yes, err)
		}
		b.must(in.Close())
		_ = cmd.Wait() // read has failed
	}
}
