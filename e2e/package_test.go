package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/umiak-io/umiak/e2e/cluster"
)

// manager is a package manager. Debian has rpm too, which is enough to run what our packages bring.
type manager struct {
	kind, file          string // file is its package's name, with the version
	install, update, rm []string
	leaves              []string // folders in which something may be left
}

// TestPackage installs umiak by dpkg and by rpm, updates it, and takes it away.
func TestPackage(t *testing.T) {
	t.Parallel()
	root, err := cluster.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := filepath.Glob(filepath.Join(root, ".cache/bin/nfpm-*")); len(all) == 0 {
		t.Fatal("there is no nfpm: scripts/packages --tool makes it")
	}
	// Its notes lie where dpkg's do, which are left out below.
	rpm := []string{"/usr/bin/rpm", "--force-debian", "--dbpath", "/var/lib/dpkg/rpm"}
	managers := []manager{{
		kind: "deb", file: "umiak_%s-1_amd64.deb", leaves: []string{"/var/lib/dpkg/"}, // its own notes
		install: []string{"/usr/bin/dpkg", "-i"}, update: []string{"/usr/bin/dpkg", "-i"},
		rm: []string{"/usr/bin/dpkg", "--purge", "umiak"},
	}, {
		// it knows no purge
		kind: "rpm", file: "umiak-%s-1.x86_64.rpm", leaves: []string{"/var/lib/dpkg/", "/etc/umiak", "/var/lib/umiak"},
		install: slices.Concat(rpm, []string{"-i"}), update: slices.Concat(rpm, []string{"-U"}),
		rm: slices.Concat(rpm, []string{"-e", "umiak"}),
	}}
	for _, m := range managers {
		t.Run(m.kind, func(t *testing.T) { packaged(t, root, m) })
	}
}

func packaged(t *testing.T, root string, m manager) {
	b := newBox(t, "pack")
	b.bare()
	before, files := b.state(), b.files()
	pack := func(version, build string) string {
		b.Helper()
		dir := b.TempDir()
		f, err := os.Create(filepath.Join(dir, "umiak"))
		b.must(err)
		_, err = f.ReadFrom(program(t, build, "umiak"))
		b.must(err)
		b.must(f.Close())
		cmd := exec.CommandContext(b.within(3*patience), filepath.Join(root, "scripts/packages"), "--arch", "amd64",
			"--programs", dir, "--licenses", filepath.Join(root, "LICENSE"),
			"--only", "umiak", "--kind", m.kind, "--deb-compression", "none", "--out",
			filepath.Join(b.M.Dir, "tmp", version))
		cmd.Env = append(os.Environ(), "UMIAK_VERSION="+version)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		return filepath.Join(b.M.Dir, "tmp", version, fmt.Sprintf(m.file, strings.TrimPrefix(version, "v")))
	}
	run := func(command []string, args ...string) {
		b.Helper()
		args = slices.Concat(command[1:], args)
		out, err := b.M.Run(b.within(2*patience), command[0], args...)
		if err != nil {
			b.Fatalf("%s %v: %v\n%s", command[0], args, err, out)
		}
		b.Log(out)
	}
	run(m.install, pack("v1.37.2", ""))
	b.systemctl("enable", "--now", "umiak")
	b.up()
	b.namespace()
	b.apply(deployment)
	b.rolledOut("web")
	have, pid := b.containers(), b.mainPID()
	if _, err := b.M.Run(b.soon(), "/usr/bin/umiak", "upgrade", "--version", "v9"); err == nil ||
		!strings.Contains(err.Error(), "package manager") {
		b.Errorf("umiak upgrade: %v", err)
	}
	run(m.update, pack("v1.37.3", "next"))
	b.up()
	if b.mainPID() == pid {
		b.Error("the update did not restart umiak")
	}
	b.untouched(have, "the update")
	run(m.rm)
	leaves := slices.Concat(m.leaves, []string{b.M.Dir}) // where the packages are
	for _, d := range append(before.Diff(b.state()), files.Diff(b.files())...) {
		if !slices.ContainsFunc(leaves, func(dir string) bool { return strings.Contains(d, dir) }) {
			b.Errorf("left behind: %s", d)
		}
	}
}
