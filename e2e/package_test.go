package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// TestPackage installs umiak by dpkg, updates it, and takes it away.
func TestPackage(t *testing.T) {
	t.Parallel()
	root, err := cluster.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := filepath.Glob(filepath.Join(root, ".cache/bin/nfpm-*")); len(all) == 0 {
		t.Fatal("there is no nfpm: scripts/packages --tool makes it")
	}
	b := newBox(t, "pack")
	b.bare()
	before, files := b.state(), b.files()
	pack := func(version, build string) string {
		t.Helper()
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "umiak"))
		b.must(err)
		_, err = f.ReadFrom(program(t, build, "umiak"))
		b.must(err)
		b.must(f.Close())
		cmd := exec.CommandContext(b.within(3*patience), filepath.Join(root, "scripts/packages"), "--arch", "amd64", "--programs", dir, "--licenses", filepath.Join(root, "LICENSE"),
			"--only", "umiak", "--kind", "deb", "--deb-compression", "none", "--out", filepath.Join(b.M.Dir, "tmp", version))
		cmd.Env = append(os.Environ(), "UMIAK_VERSION="+version)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return filepath.Join(b.M.Dir, "tmp", version, "umiak_"+strings.TrimPrefix(version, "v")+"-1_amd64.deb")
	}
	dpkg := func(args ...string) {
		t.Helper()
		out, err := b.M.Run(b.within(2*patience), "/usr/bin/dpkg", args...)
		if err != nil {
			b.Fatalf("dpkg %v: %v\n%s", args, err, out)
		}
		t.Log(out)
	}
	dpkg("-i", pack("v1.37.2", ""))
	b.systemctl("enable", "--now", "umiak")
	b.up()
	b.namespace()
	b.apply(deployment)
	b.rolledOut("web")
	have, pid := b.containers(), b.mainPID()
	if _, err := b.M.Run(b.soon(), "/usr/bin/umiak", "upgrade", "--version", "v9"); err == nil || !strings.Contains(err.Error(), "package manager") {
		t.Errorf("umiak upgrade: %v", err)
	}
	dpkg("-i", pack("v1.37.3", "next"))
	b.up()
	if b.mainPID() == pid {
		t.Error("the update did not restart umiak")
	}
	b.untouched(have, "the update")
	dpkg("--purge", "umiak")
	for _, d := range append(before.Diff(b.state()), files.Diff(b.files())...) {
		if !strings.Contains(d, "/var/lib/dpkg/") && !strings.Contains(d, b.M.Dir) { // its own notes, and the packages
			t.Errorf("left behind: %s", d)
		}
	}
}
