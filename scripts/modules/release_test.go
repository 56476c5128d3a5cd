package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// standIn is a checkout with the real scripts/release, and stand-ins for what it calls and takes minutes.
func standIn(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"bash", "git", "openssl", "xz", "gzip", "tar", "awk", "sha256sum"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"release", "env"} {
		raw, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, map[string]string{"scripts/" + name: string(raw)})
	}
	write(t, dir, map[string]string{
		".gitignore": "/dist/\n/.cache/\n/out*\n/*.pem\n",
		"scripts/build": `#!/bin/bash
[ "$1" != --print-version ] || { echo v9.9.9+umiak1; exit; }
mkdir -p "$4"
for p in umiak umiak-agent; do printf '#!/bin/sh\necho %s of %s\n' "$p" "$2" >"$4/$p"; done
`,
		// What is built is scripts/modules, whose output has tests of its own.
		"bin/go": `#!/bin/bash
[ "$1" != env ] || { echo amd64; exit; }
printf '%s\n' '#!/bin/bash' 'while [ "$1" != -o ]; do shift; done' 'echo paper >"$2"' >"$3"
chmod +x "$3"
`,
		"scripts/packages":        "#!/bin/bash\necho deb >\"$8/umiak_$2.deb\"\n",
		"bin/qemu-arm-static":     "#!/bin/sh\nexec \"$@\"\n",
		"bin/qemu-riscv64-static": "#!/bin/sh\nexec \"$@\"\n",
		"install.sh": `#!/bin/sh
UMIAK_RELEASE_VERSION=''
# --- key
RELEASE_KEY=''
# --- end of key
main() { echo "$UMIAK_RELEASE_VERSION"; printf '%s\n' "$RELEASE_KEY"; }
main
`,
	})
	for _, p := range []string{"scripts/release", "scripts/build", "scripts/packages", "bin/go", "bin/qemu-arm-static",
		"bin/qemu-riscv64-static"} {
		if err := os.Chmod(filepath.Join(dir, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	shell(t, dir, `git init -q . && git add -A && git -c user.name=t -c user.email=t@t commit -qm t`)
	return dir
}

// shell runs a command line that must pass, and returns what it printed.
func shell(t *testing.T, dir, line string) string {
	t.Helper()
	out, err := shellTry(t, dir, line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

func shellTry(t *testing.T, dir, line string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "UMIAK_RELEASE_KEY_FILE=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestRelease(t *testing.T) {
	dir := standIn(t)
	out := shell(t, dir, "scripts/release --arch amd64,riscv64 --out out")
	if !strings.Contains(out, "test key") {
		t.Errorf("nothing is said of the test key:\n%s", out)
	}
	if mode := shell(t, dir, "stat -c %a .cache/release-key.pem"); mode != "600\n" {
		t.Errorf("the key has mode %s", mode)
	}
	// As a user does it by hand, with the key that install.sh brings.
	shell(t, dir, "sh out/install.sh >said && grep -qx 'v9.9.9+umiak1' said && grep -v v9.9.9 said >out.pem")
	shell(t, dir, "openssl dgst -sha256 -verify out.pem -signature out/SHA256SUMS.sig out/SHA256SUMS")
	shell(t, dir, "cd out && sha256sum --check --ignore-missing --strict SHA256SUMS")
	shell(t, dir, "grep -q '  umiak_riscv64.deb$' out/SHA256SUMS && grep -q '  umiak-agent-linux-riscv64$' out/SHA256SUMS && sort -c -k 2 out/SHA256SUMS")
	shell(t, dir, "[ \"$(tar -tf out/umiak-v9.9.9+umiak1-linux-riscv64.tar | wc -l)\" = 7 ]")
	if out := shell(t, dir, "scripts/release --verify out"); !strings.Contains(out, "ok    umiak-agent of riscv64") {
		t.Errorf("the emulated program was not started:\n%s", out)
	}

	// The same again, with nothing left of the first time but the key.
	shell(t, dir, "rm said; cp -r out out1 && mv .cache/release-key.pem k.pem && rm -rf .cache dist && scripts/release --key k.pem --arch amd64,riscv64 --out out && diff -r out out1")
	shell(t, dir, "scripts/release --verify out --key out.pem && scripts/release --verify out --key k.pem")
}

func TestReleaseRefuses(t *testing.T) {
	dir := standIn(t)
	shell(t, dir, "openssl genrsa -out k.pem 2048 && openssl genrsa -out other.pem 2048 && openssl genpkey -algorithm ed25519 -out ed.pem")
	shell(t, dir, "scripts/release --key k.pem --arch arm --out out")
	for name, c := range map[string]struct{ line, says string }{
		"another key": {"scripts/release --verify out --key other.pem", "BAD   signature of SHA256SUMS"},
		"a changed program": {"cp -r out out1; echo >>out1/umiak-linux-arm.gz; scripts/release --verify out1",
			"BAD   sums of SHA256SUMS"},
		"a changed list": {"cp -r out out2; echo >>out2/SHA256SUMS; scripts/release --verify out2",
			"BAD   signature of SHA256SUMS"},
		"a missing file": {"cp -r out out3; rm out3/umiak-linux-arm.xz; scripts/release --verify out3",
			"BAD   sums of SHA256SUMS"},
		"a file of others": {"cp -r out out4; echo >out4/umiak.exe; scripts/release --verify out4",
			"BAD   umiak.exe is in no list"},
		"a changed archive": {"cp -r out out5; echo >>out5/*.tar; scripts/release --verify out5",
			"BAD   sums of ARCHIVES.SHA256SUMS"},
		"no RSA key":          {"scripts/release --key ed.pem --out out6", "is no private RSA key"},
		"no key there":        {"scripts/release --key none.pem --out out6", "cannot be read"},
		"another folder":      {"mkdir out7; echo >out7/mine; scripts/release --key k.pem --out out7", "no release"},
		"an architecture":     {"scripts/release --arch mips", "not one of"},
		"install.sh unmarked": {"cp -r . ../unmarked; cd ../unmarked; grep -v 'end of key' install.sh >i; mv i install.sh; scripts/release --key k.pem --out out8; rc=$?; [ ! -e out8 ] && exit $rc", "install.sh must have"},
	} {
		out, err := shellTry(t, dir, c.line)
		if err == nil || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v, want %q in:\n%s", name, err, c.says, out)
		}
		if strings.Contains(name, "changed program") && strings.Contains(out, "umiak of arm") {
			t.Errorf("a program that was changed was started:\n%s", out)
		}
	}
}

// TestPackages packs stand-ins with the real scripts/packages.
func TestPackages(t *testing.T) {
	if all, _ := filepath.Glob("../../.cache/bin/nfpm-*"); len(all) == 0 {
		t.Skip("there is no nfpm: scripts/packages --tool makes it")
	}
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"umiak": "a program", "umiak-agent": "another", "LICENSES.txt": "as is"})
	pack := func(arch, out string) {
		t.Helper()
		shell(t, "../..", "UMIAK_VERSION=v9.8.7+umiak1 SOURCE_DATE_EPOCH=1700000000 scripts/packages --arch "+arch+
			" --programs "+dir+" --licenses "+dir+"/LICENSES.txt --out "+filepath.Join(dir, out))
	}
	pack("amd64", "out")
	for a, names := range map[string][]string{"arm64": {"arm64", "aarch64"}, "arm": {"armhf", "armv7hl"},
		"riscv64": {"riscv64", "riscv64"}} {
		pack(a, "out")
		shell(t, dir, "[ -s out/umiak_9.8.7+umiak1-1_"+names[0]+".deb ] && [ -s out/umiak-agent-9.8.7+umiak1-1."+
			names[1]+".rpm ]")
	}
	shell(t, dir, "touch umiak umiak-agent LICENSES.txt")
	pack("amd64", "again")
	shell(t, dir, "for f in again/*; do cmp $f out/${f#again/}; done; [ $(ls out | wc -l) = 16 ]")
	shell(t, dir, "dpkg-deb -x out/umiak_9.8.7+umiak1-1_amd64.deb x && grep -qx 'a program' x/usr/bin/umiak && grep -qx 'ExecStart=/usr/bin/umiak server' x/usr/lib/systemd/system/umiak.service")
	shell(t, dir, "[ $(stat -c %a x/etc/umiak/config.yaml) = 600 ] && dpkg-deb -e out/umiak-agent_9.8.7+umiak1-1_amd64.deb e && grep -qx /etc/umiak/config.yaml e/conffiles && grep -qx 'Conflicts: umiak' e/control")
	shell(t, dir, "for f in e/p*; do sh -n $f; done")
}
