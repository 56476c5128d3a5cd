package release

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// program stands for umiak: it says its version, refuses settings with "bad" in them, and knows where the data are.
const program = `#!/bin/sh
settings() { cat "$(dirname "$1")/umiak.env" "$1" "$1".d/*.yaml 2>/dev/null; }
case $1 in
--version) echo 'umiak version %s (test)' ;;
check)
	env | grep '^UMIAK_' && exit 3
	token=$(settings "$3" | sed -n "s/^token-file: '\(.*\)'$/\1/p")
	[ -z "$token" ] || [ -s "$token" ] || { echo "token-file: $token is not there"; exit 2; }
	if settings "$3" | grep bad; then echo 'umiak: these settings cannot be used'; exit 2; fi
	;;
directories) settings "$3" | sed -n "s/^UMIAK_DATA_DIR='\(.*\)'$/\1/p; s/^data-dir: '\(.*\)'$/\1/p"; echo /run/umiak ;;
esac
`

// host is a folder that install.sh takes for a machine without an init system.
type host struct {
	*testing.T
	*Maker
	dir string
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("install.sh wants root")
	}
	m, err := NewMaker("../..")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t, m, t.TempDir()}
	r := strings.NewReplacer("=/etc/umiak\n", "="+h.dir+"/etc\n", "=/run/", "="+h.dir+"/run/", "/usr/local/bin", h.dir+
		"/default", "-d /run/systemd/system", "-d /nowhere", "has rc-service", "false")
	m.installer = r.Replace(m.installer)
	for _, d := range []string{"run", "tools"} {
		h.must(os.Mkdir(filepath.Join(h.dir, d), 0o755))
	}
	h.must(os.Chmod(h.dir, 0o755))
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

// tool puts a command in front of the machine's.
func (h *host) tool(name, script string) {
	h.Helper()
	h.must(os.WriteFile(filepath.Join(h.dir, "tools", name), []byte("#!/bin/sh\n"+script), 0o755))
}

// install runs the install.sh of a version, which is made first.
func (h *host) install(version string, env []string, args ...string) (string, error) {
	h.Helper()
	h.must(h.Make(filepath.Join(h.dir, "releases"), version,
		map[string]io.Reader{"umiak": strings.NewReader(fmt.Sprintf(program, version))}))
	cmd := exec.CommandContext(h.Context(), "/bin/sh",
		append([]string{filepath.Join(h.dir, "releases", version, "install.sh")}, args...)...)
	cmd.Dir = h.dir
	cmd.Env = append([]string{"PATH=" + h.dir + "/tools:" + os.Getenv("PATH")}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (h *host) mustInstall(version string, env []string, args ...string) string {
	h.Helper()
	out, err := h.install(version, env, args...)
	if err != nil {
		h.Fatalf("install %s: %v\n%s", version, err, out)
	}
	return out
}

func (h *host) refused(version string, env []string, words ...string) {
	h.Helper()
	out, err := h.install(version, env)
	if err == nil {
		h.Errorf("%s with %q was not refused:\n%s", version, env, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			h.Errorf("%s with %q does not say %q:\n%s", version, env, w, out)
		}
	}
}

func (h *host) has(file string, words ...string) {
	h.Helper()
	raw, err := os.ReadFile(filepath.Join(h.dir, file))
	h.must(err)
	for _, w := range words {
		if !strings.Contains(string(raw), w) {
			h.Errorf("%s does not have %q:\n%s", file, w, raw)
		}
	}
}

func (h *host) gone(file string) {
	h.Helper()
	if _, err := os.Lstat(filepath.Join(h.dir, file)); !errors.Is(err, os.ErrNotExist) {
		h.Errorf("%s is there: %v", file, err)
	}
}

// TestFolderOfTheProgram is remembered, and so the guard against older versions knows what is there.
func TestFolderOfTheProgram(t *testing.T) {
	h := newHost(t)
	out := h.mustInstall("v1.37.0", []string{"INSTALL_UMIAK_BIN_DIR=" + h.dir + "/opt/bin"})
	if !strings.Contains(out, h.dir+"/opt/bin/umiak server") {
		t.Errorf("it does not say where the program is:\n%s", out)
	}
	h.mustInstall("v1.37.1", nil)
	h.has("opt/bin/umiak", "v1.37.1")
	h.gone("default")
	h.refused("v1.30.0", nil, "v1.30.0 is older than v1.37.1")
	h.refused("v1.39.0", nil, "more than one minor version")
	// Into another folder, on which the guard looks as well.
	moved := []string{"INSTALL_UMIAK_BIN_DIR=" + h.dir + "/bin"}
	h.refused("v1.30.0", moved, "v1.30.0 is older than v1.37.1")
	h.mustInstall("v1.37.2", moved)
	h.gone("opt/bin/umiak")
	h.has("bin/umiak", "v1.37.2")
	h.has("etc/installed", h.dir+"/bin/umiak\n")
	// The program has been removed.
	h.must(os.Remove(filepath.Join(h.dir, "bin/umiak")))
	h.refused("v1.30.0", nil, "v1.30.0 is older than v1.37.2")
	h.mustInstall("v1.37.2", nil)
	h.has("bin/umiak", "v1.37.2")
}

// TestWords: INSTALL_UMIAK_EXEC is split as a shell does, and nothing else of a shell happens to it.
func TestWords(t *testing.T) {
	h := newHost(t)
	h.must(os.WriteFile(filepath.Join(h.dir, "a.example.com"), nil, 0o644))
	h.mustInstall("v1.37.0", []string{`INSTALL_UMIAK_EXEC=server --tls-san *.example.com --tls-san 'b c' --node-label "a=$(id) 'x'" --node-name it\'s`}, "--disable", "dns")
	h.has("etc/config.yaml.d/50-install.yaml", "tls-san:\n  - '*.example.com'\n  - 'b c'\n",
		`node-label: 'a=$(id) ''x'''`+"\n", "node-name: 'it''s'\n", "disable: 'dns'\n")
	h.refused("v1.37.0", []string{"INSTALL_UMIAK_EXEC=server 'unmatched"}, "its quotes do not match")
}

// TestSettings: what was given in whatever way is in one place, and is looked at before anything is touched.
func TestSettings(t *testing.T) {
	h := newHost(t)
	h.mustInstall("v1.37.0", []string{"UMIAK_DATA_DIR=/data", "UMIAK_TOKEN=secret", "HTTPS_PROXY=http://proxy:1"},
		"server", "--node-label", "a=b", "--disable-agent")
	// The program refuses true without quotes for what is not true or false: a flag that lacks its value.
	h.has("etc/config.yaml.d/50-install.yaml", "node-label: 'a=b'\n", "disable-agent: true\n")
	h.has("etc/umiak.env", "UMIAK_DATA_DIR='/data'\n", "HTTPS_PROXY='http://proxy:1'\n")
	h.has("etc/token", "secret\n")
	before, err := os.ReadFile(filepath.Join(h.dir, "etc/config.yaml.d/50-install.yaml"))
	h.must(err)
	h.refused("v1.37.0", []string{"INSTALL_UMIAK_EXEC=server --token"}, "--token needs a value")
	h.refused("v1.37.0", []string{"UMIAK_NODE_LABEL=bad"}, "settings cannot be used", "nothing was changed")
	h.refused("v1.37.0", []string{"INSTALL_UMIAK_EXEC=--kubelet-arg bad"}, "settings cannot be used")
	h.must(os.WriteFile(filepath.Join(h.dir, "etc/config.yaml"), []byte("bad: 1\n"), 0o600))
	h.refused("v1.37.1", nil, "settings cannot be used", "nothing was changed")
	h.has("default/umiak", "v1.37.0")
	h.has("etc/config.yaml.d/50-install.yaml", string(before))
	h.must(os.Remove(filepath.Join(h.dir, "etc/config.yaml")))
	h.mustInstall("v1.37.1", []string{"https_proxy=http://proxy:2"})
	raw, err := os.ReadFile(filepath.Join(h.dir, "etc/umiak.env"))
	if h.must(err); strings.Contains(string(raw), "HTTPS_PROXY") ||
		!strings.Contains(string(raw), "https_proxy='http://proxy:2'") {
		t.Errorf("of both spellings of a proxy not the last one is kept:\n%s", raw)
	}
}

// TestProxy: the one that was given once is used for downloads later.
func TestProxy(t *testing.T) {
	h := newHost(t)
	h.tool("curl", `for a; do
	[ "${last:-}" != -o ] || out=$a
	last=$a
done
echo "${https_proxy:-none} ${http_proxy:-none} ${no_proxy:-none}" >>`+h.dir+`/asked
cp "`+h.dir+`/releases/${last#https://mirror.lan/}" "$out" && printf 200
`)
	base := "INSTALL_UMIAK_BASE_URL=https://mirror.lan"
	h.mustInstall("v1.37.0", []string{base, "HTTPS_PROXY=http://proxy:1", "NO_PROXY=.lan"})
	h.has("asked", "http://proxy:1 none .lan\n")
	h.must(os.Remove(filepath.Join(h.dir, "asked")))
	h.mustInstall("v1.37.1", []string{base})
	raw, err := os.ReadFile(filepath.Join(h.dir, "asked"))
	if h.must(err); strings.Contains(string(raw), "none none") {
		t.Errorf("asked without the proxy:\n%s", raw)
	}
}

// TestLabels: files are made where they belong, and get the label of that place.
func TestLabels(t *testing.T) {
	h := newHost(t)
	h.tool("restorecon", `echo "$1" >>`+h.dir+"/labelled\n")
	h.mustInstall("v1.37.0", []string{"UMIAK_NODE_NAME=n"})
	for _, f := range []string{"etc/umiak.env", "etc/installed", "etc/install.sh", "default/umiak"} {
		st, err := os.Stat(filepath.Join(h.dir, f))
		h.must(err)
		if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Nlink != 1 {
			t.Errorf("%s has %d names", f, sys.Nlink)
		}
		h.has("labelled", filepath.Join(h.dir, f)+"\n")
	}
}

// TestNotRoot: what it says to do keeps the variables, and shows no token.
func TestNotRoot(t *testing.T) {
	h := newHost(t)
	script, err := h.Installer("v1.37.0")
	h.must(err)
	for _, c := range []struct {
		env, args []string
		want      string
	}{
		{[]string{"UMIAK_URL=https://s:6443", "UMIAK_TOKEN=secret"}, nil,
			"sudo --preserve-env=UMIAK_TOKEN,UMIAK_URL sh -\n"},
		{nil, []string{"server", "--node-name", "a b"}, "sudo sh -s - server --node-name 'a b'\n"},
		{[]string{"https_proxy=p"}, []string{"agent", "--token", "secret"},
			"sudo --preserve-env=https_proxy sh -s - agent …\n"},
	} {
		cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-s", "-"}, c.args...)...)
		cmd.Stdin, cmd.Dir, cmd.Env = strings.NewReader(script), "/", append([]string{"PATH=" + os.Getenv("PATH")},
			c.env...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.HasSuffix(string(out), c.want) || strings.Contains(string(out), "secret") {
			t.Errorf("%v, not %q:\n%s", err, c.want, out)
		}
	}
}

// TestReleaseThatWasAskedFor: a signature does not say which release it is of, so the program has to.
func TestReleaseThatWasAskedFor(t *testing.T) {
	h := newHost(t)
	const older, runs, asked = "v1.37.1+umiak1", "v1.37.2+umiak1", "v1.37.9+umiak1"
	releases := filepath.Join(h.dir, "releases")
	place := "INSTALL_UMIAK_BASE_URL=" + releases
	h.mustInstall(runs, []string{place})
	// as is what the releases' place has under the name of the version that is asked for.
	upgrade := func(as, version string, env ...string) (string, error) {
		h.must(h.Make(releases, as, map[string]io.Reader{"umiak": strings.NewReader(fmt.Sprintf(program, as))}))
		if as != version {
			h.must(os.RemoveAll(filepath.Join(releases, version)))
			h.must(os.CopyFS(filepath.Join(releases, version), os.DirFS(filepath.Join(releases, as))))
		}
		cmd := exec.CommandContext(t.Context(), "/bin/sh", filepath.Join(h.dir, "etc/install.sh"))
		cmd.Dir, cmd.Env = h.dir, append([]string{"PATH=" + h.dir + "/tools:" + os.Getenv("PATH"),
			"INSTALL_UMIAK_VERSION=" + version}, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, c := range []struct {
		as, version string
		words       []string
	}{
		{runs, asked, []string{"has " + runs + " where " + asked + " should be"}},
		{older, asked, []string{"has " + older + " where " + asked + " should be"}},
		{older, older, []string{older + " is older than " + runs, "INSTALL_UMIAK_ALLOW_OLDER"}},
	} {
		out, err := upgrade(c.as, c.version)
		if err == nil {
			t.Errorf("%s as %s was installed:\n%s", c.as, c.version, out)
		}
		for _, w := range append(c.words, "nothing was changed") {
			if !strings.Contains(out, w) {
				t.Errorf("%s as %s: it does not say %q:\n%s", c.as, c.version, w, out)
			}
		}
		h.has("default/umiak", runs)
	}
	if out, err := upgrade(older, older, "INSTALL_UMIAK_ALLOW_OLDER=true"); err != nil {
		t.Errorf("the word for an older release does not help: %v\n%s", err, out)
	}
	h.has("default/umiak", older)
}

// TestProgramAlone: what the cluster asks for brings a program and nothing else, and is not where later ones come from.
func TestProgramAlone(t *testing.T) {
	h := newHost(t)
	h.mustInstall("v1.37.0", nil)
	h.must(h.Make(filepath.Join(h.dir, "other"), "v1.37.1",
		map[string]io.Reader{"umiak": strings.NewReader(fmt.Sprintf(program, "v1.37.1"))}))
	other := filepath.Join(h.dir, "other/v1.37.1")
	h.must(os.Mkdir(filepath.Join(other, "config"), 0o755))
	h.must(os.WriteFile(filepath.Join(other, "config/server.yaml"), []byte("kubelet-arg: [x=y]\n"), 0o644))
	h.must(os.WriteFile(filepath.Join(other, "BUNDLE.SHA256SUMS"), nil, 0o644))
	env, _ := os.ReadFile(filepath.Join(h.dir, "etc/umiak.env"))
	h.mustInstall("v1.37.1", []string{"INSTALL_UMIAK_BASE_URL=" + other, "INSTALL_UMIAK_ONLY=program"})
	h.has("default/umiak", "v1.37.1")
	h.gone("etc/config.yaml.d/40-bundle.yaml")
	if now, _ := os.ReadFile(filepath.Join(h.dir, "etc/umiak.env")); string(now) != string(env) {
		t.Errorf("umiak.env has become:\n%s", now)
	}
	h.refused("v1.37.1", []string{"INSTALL_UMIAK_ONLY=settings"}, "there is only program")
}

// TestFilesOfARelease: what is no file is not read.
func TestFilesOfARelease(t *testing.T) {
	h := newHost(t)
	for what, make := range map[string]func(string) error{
		"fifo": func(at string) error { return syscall.Mkfifo(at, 0o644) },
		"link": func(at string) error { return os.Symlink("/etc/passwd", at) },
	} {
		dir := filepath.Join(h.dir, what)
		h.must(os.Mkdir(dir, 0o755))
		h.must(make(filepath.Join(dir, "SHA256SUMS")))
		h.refused("v1.37.0", []string{"INSTALL_UMIAK_SOURCE=" + dir}, "is not a file")
	}
}
