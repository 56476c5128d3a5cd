package mounted

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsDevice(t *testing.T) {
	for _, c := range []struct {
		low, high, major, minor uint32
		want                    bool
	}{
		{0x811, 0, 8, 0x11, true},        // sdb1
		{0x10b301, 0, 0xb3, 0x101, true}, // a minor of more than eight bits
		{0, 0, 0, 0x2a, true},            // no ID, as of FUSE
		{0x811, 1, 8, 0x11, false},
		{0x812, 0, 8, 0x11, false},
	} {
		if got := isDevice(c.low, c.high, c.major, c.minor); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// TestKernelUUID uses tmpfs, to which the kernel gives a UUID at each mount.
func TestKernelUUID(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for _, at := range []string{one, two} {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Error(err)
			}
		})
	}
	a, b := kernelUUID(one), kernelUUID(two)
	if a == "" && b == "" {
		t.Skip("this kernel does not tell UUIDs")
	}
	if len(a) != 32 || len(b) != 32 || a == b || kernelUUID(one) != a {
		t.Errorf("%q, %q", a, b)
	}
	if id := kernelUUID("/proc"); id != "" {
		t.Errorf("a file system without a UUID has %q", id)
	}
}

// TestUdevUUID checks that udev's UUID is used if the kernel has none, found by the device number whatever its name.
func TestUdevUUID(t *testing.T) {
	links := t.TempDir()
	dev := filepath.Join(links, "..", "sdz1")
	if err := unix.Mknod(dev, unix.S_IFBLK|0o600, int(unix.Mkdev(8, 401))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("../sdz1", filepath.Join(links, "1A2B-3C4D")),
		os.Symlink("nothing", filepath.Join(links, "0000-0000"))); err != nil {
		t.Fatal(err)
	}
	if id := uuid("/proc", links, 8, 401); id != strings.ToLower("1A2B3C4D") {
		t.Errorf("%q", id)
	}
	for _, links := range []string{links, filepath.Join(links, "none")} {
		if id := uuid("/proc", links, 8, 402); id != "" {
			t.Errorf("another device: %q", id)
		}
	}
}
