package host

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModuleFiles(t *testing.T) {
	dep := []byte("kernel/net/llc/llc.ko.xz:\nkernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\nkernel/x/nf-foo.ko:\n")
	got := moduleFiles(dep, "br_netfilter")
	want := []string{"kernel/net/llc/llc.ko.xz", "kernel/net/802/stp.ko.xz", "kernel/net/bridge/bridge.ko.xz",
		"kernel/net/bridge/br_netfilter.ko.xz"}
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := moduleFiles(dep, "nf_foo"); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got := moduleFiles(dep, "netfilter"); got != nil {
		t.Errorf("%v", got)
	}
	if err := loadModule("no_such_module"); !errors.Is(err, errNoModule) {
		t.Errorf("%v", err)
	}
}

func TestFindModule(t *testing.T) {
	root := t.TempDir()
	if _, _, err := findModule(root, "br_netfilter"); !errors.Is(err, errNoModule) {
		t.Errorf("without modules: %v", err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, unix.ByteSliceToString(u.Release[:]))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte("a/br_netfilter.ko: a/bridge.ko\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	got, files, err := findModule(root, "br_netfilter")
	if err != nil || got != dir || !slices.Equal(files, []string{"a/bridge.ko", "a/br_netfilter.ko"}) {
		t.Errorf("%s, %v, %v", got, files, err)
	}
}

func TestDecompress(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte("elf"))
	_ = w.Close()
	if got, err := decompress(bytes.NewReader(b.Bytes()), "x.ko.gz"); err != nil || string(got) != "elf" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := decompress(bytes.NewReader(nil), "x.ko.xz"); err == nil {
		t.Error("xz is not known")
	}
}
