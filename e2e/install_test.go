package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/umiak-io/umiak/e2e/cluster"
	"github.com/umiak-io/umiak/e2e/debian"
	"github.com/umiak-io/umiak/e2e/images"
	"github.com/umiak-io/umiak/e2e/machine"
	"github.com/umiak-io/umiak/e2e/release"
	"github.com/umiak-io/umiak/internal/wellknown"
)

// mirror is a web server with releases, at the LAN's gateway.
type mirror struct {
	maker    *release.Maker
	programs []string
	dir      string
	url      string
	cut      atomic.Int64 // answers end after so many bytes, if it is not 0
	slow     atomic.Bool  // programs come a little at a time
	now      string       // the version of the programs under test
}

// newReleases is a mirror without a network. It has the programs of this build. Each takes seconds to be compressed.
func newReleases(t *testing.T, programs ...string) *mirror {
	t.Helper()
	root, err := cluster.Checkout()
	if err != nil {
		t.Fatal(err)
	}
	m := &mirror{dir: t.TempDir(), programs: programs}
	if m.maker, err = release.NewMaker(root); err != nil {
		t.Fatal(err)
	}
	m.now = versionOf(t, "")
	m.release(t, m.now, "")
	return m
}

func newMirror(t *testing.T, l *machine.LAN, programs ...string) *mirror {
	t.Helper()
	m := newReleases(t, programs...)
	err := l.Do(func() error {
		s := &http.Server{Handler: m, ReadHeaderTimeout: time.Minute}
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", l.Gateway()+":0")
		if err != nil {
			return err
		}
		m.url = "http://" + ln.Addr().String()
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(ln) }()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// program is one of a folder in dist; "" is what is under test, "next" another build.
func program(t *testing.T, build, name string) io.Reader {
	t.Helper()
	dist, err := cluster.Dist()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dist, build, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // only read
	return f
}

func (m *mirror) release(t *testing.T, version, build string) {
	t.Helper()
	all := map[string]io.Reader{}
	for _, p := range m.programs {
		all[p] = program(t, build, p)
	}
	if err := m.maker.Make(m.dir, version, all); err != nil {
		t.Fatal(err)
	}
}

// next has another build of the programs too, and returns its version.
func (m *mirror) next(t *testing.T) string {
	t.Helper()
	version := versionOf(t, "next")
	m.release(t, version, "next")
	return version
}

// versionOf is what the programs of a folder in dist say of themselves.
func versionOf(t *testing.T, build string) string {
	t.Helper()
	dist, err := cluster.Dist()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(dist, build, "umiak"), "--version").Output()
	words := strings.Fields(string(out)) // umiak version v1.37.2+next (…
	if err != nil || len(words) < 3 {
		t.Fatalf("%s: %v", out, err)
	}
	return words[2]
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if n := m.cut.Load(); n > 0 && strings.HasSuffix(r.URL.Path, ".gz") {
		w.Header().Set("Content-Length", "50000000")
		_, _ = w.Write(make([]byte, n))
		panic(http.ErrAbortHandler)
	}
	if m.slow.Load() && strings.HasSuffix(r.URL.Path, ".gz") {
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 1<<16))
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
		return
	}
	http.FileServer(http.Dir(m.dir)).ServeHTTP(w, r)
}

// install runs the line that people run. Variables go before sh.
func (b *box) install(m *mirror, version, vars, args string) (string, error) {
	return b.M.Run(b.within(3*patience), "/bin/sh", "-c",
		fmt.Sprintf("curl -sfL %s/%s/install.sh | INSTALL_UMIAK_BASE_URL=%[1]s %[3]s sh -s - %[4]s 2>&1", m.url,
			version, vars, args))
}

func (b *box) mustInstall(m *mirror, version, vars, args string) string {
	b.Helper()
	out, err := b.install(m, version, vars, args)
	if err != nil {
		b.Fatalf("install: %v\n%s\n%s", err, out, b.systemLog())
	}
	b.Logf("%s", strings.TrimSpace(out))
	return out
}

// upgrade is umiak upgrade.
func (b *box) upgrade(args ...string) {
	b.Helper()
	out, err := b.M.Run(b.within(3*patience), "/usr/local/bin/umiak", append([]string{"upgrade"}, args...)...)
	if err != nil {
		b.Errorf("upgrade: %v\n%s", err, out) // no Fatal: it is run beside writers
	}
	b.Logf("%s", strings.TrimSpace(out))
}

func (b *box) systemLog() string {
	out, _ := b.M.Run(b.soon(), "/usr/bin/journalctl", "-n", "40", "--no-pager", "-o", "cat")
	return out
}

// refused runs an installation that must fail with words and change nothing.
func (b *box) refused(m *mirror, version, vars, args string, words ...string) {
	b.Helper()
	before := b.files()
	b.fails(m, version, vars, args, words...)
	if diff := before.Diff(b.files()); len(diff) > 0 {
		b.Errorf("%s %s %s left behind:\n%s", version, vars, args, strings.Join(diff, "\n"))
	}
}

// fails runs an installation that must fail with words.
func (b *box) fails(m *mirror, version, vars, args string, words ...string) {
	b.Helper()
	out, err := b.install(m, version, vars, args)
	if err == nil {
		b.Errorf("%s %s %s was not refused:\n%s", version, vars, args, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			b.Errorf("%s %s %s: the answer does not say %q:\n%s", version, vars, args, w, out)
		}
	}
}

// files are what there is on the machine's disk, with size and time, but for what its programs write as they go.
func (b *box) files() machine.Snapshot {
	b.Helper()
	out, err := b.M.Run(b.soon(), "/usr/bin/find", "/", "/etc", "-xdev", "(", "-path", "/var/log", "-o", "-path",
		"/var/lib/systemd", "-o", "-path", "/tmp", "-o", "-path", "/etc/systemd/logind.conf.d",
		"-o", "-path", "/var/lib/cni", "-o", "-path", "/var/lib/kubelet", ")", "-prune", "-o", "!", "-type", "d",
		"-printf", "%p %M %s %T@\\n")
	b.must(err)
	return machine.Snapshot{"files": strings.Split(strings.TrimSpace(out), "\n")}
}

// state is all that an uninstallation has to leave as it was.
func (b *box) state() machine.Snapshot {
	b.Helper()
	s, err := b.M.Snapshot(b.soon(), "/var/lib/umiak", "/run/systemd", "/run/log", "/run/udev", "/run/openrc",
		"/var/log/journal")
	b.must(err)
	return s
}

// bare takes the settings away that every test machine has.
func (b *box) bare() {
	b.Helper()
	b.must(b.M.Do(func() error { return os.RemoveAll("/etc/umiak") }))
}

func (b *box) installed() string {
	b.Helper()
	out, err := b.M.Run(b.soon(), "/usr/bin/sha256sum", "/usr/local/bin/umiak")
	b.must(err)
	return out[:64]
}

// taintsAsked are a node's taints that a user has given it. One that has just become ready may still have
// Kubernetes' own, for one that is not.
func taintsAsked(n *corev1.Node) []corev1.Taint {
	return slices.DeleteFunc(slices.Clone(n.Spec.Taints),
		func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeNotReady })
}

func TestInstall(t *testing.T) {
	t.Parallel()
	b := newBox(t, "inst")
	b.bare()
	m := newMirror(t, b.M.LAN(), "umiak")
	next := m.next(t)
	// Another's program of a name for which install.sh makes a link.
	b.must(b.M.Do(func() error { return os.WriteFile("/usr/local/bin/ctr", []byte("#!/bin/sh\necho theirs\n"), 0o755) }))
	before, files := b.state(), b.files()

	b.sub("Refused", func(b *box) {
		b.refusedOfK3s(m)
		b.refused(m, m.now, "", "server --node-naem x", "node-naem", "nothing was changed")
		b.refused(m, m.now, "", "server extra", "unknown argument extra")
		b.refused(m, m.now, "", "server --config /etc/x.yaml", "--config cannot be kept")
		b.refused(m, m.now, "INSTALL_UMIAK_TIMEOUT=5m", "", "say a number of seconds")
		b.refused(m, m.now, "INSTALL_UMIAK_SKIP_START=1", "", "say true or false")
		b.refused(m, m.now, "INSTALL_UMIAK_VERSION=v9", "", "404", "SHA256SUMS")
		b.refused(m, m.now, "INSTALL_UMIAK_BIN_DIR=bin", "", "not an absolute path")
		b.refused(m, m.now, "INSTALL_UMIAK_KEY_FILE=/etc/os-release", "", "signature")
		m.cut.Store(1 << 20)
		b.refused(m, m.now, "", "", "umiak-linux-", "nothing was changed")
		m.cut.Store(0)
		b.must(b.M.Do(func() error { return os.MkdirAll("/mnt/small", 0o755) }))
		_, err := b.M.Run(b.soon(), "/usr/bin/mount", "-t", "tmpfs", "-o", "size=64m", "none", "/mnt/small")
		b.must(err)
		b.refused(m, m.now, "INSTALL_UMIAK_BIN_DIR=/mnt/small", "", "MiB free")
		_, err = b.M.Run(b.soon(), "/usr/bin/umount", "/mnt/small")
		b.must(errors.Join(err, b.M.Do(func() error { return os.Remove("/mnt/small") })))
		b.forged(m)
		var taken net.Listener
		b.must(b.M.Do(func() (err error) {
			taken, err = (&net.ListenConfig{}).Listen(b.ctx, "tcp", ":6443")
			return err
		}))
		b.refused(m, m.now, "", "", "port 6443", "this machine lacks what is marked above")
		b.must(taken.Close())
		out, err := b.install(m, m.now, "", "--dry-run server --node-label a=b")
		if err != nil || !strings.Contains(out, "would install umiak-linux-") ||
			!strings.Contains(out, "node-label: 'a=b'") {
			b.Errorf("dry run: %v\n%s", err, out)
		}
		if diff := append(before.Diff(b.state()), files.Diff(b.files())...); len(diff) > 0 {
			b.Fatalf("left behind:\n%s", strings.Join(diff, "\n"))
		}
	})

	b.refused(m, m.now, "", "server --token 'not a token'", "token: its secret has a space", "nothing was changed")
	out := b.mustInstall(m, m.now, "UMIAK_NODE_LABEL=from=env INSTALL_K3S_TYPE=notify K3S_TOKEN=of-this-cluster "+
		"INSTALL_K3S_EXEC='server --node-taint a=b:PreferNoSchedule'", "--node-taint=c=d:PreferNoSchedule")
	if !strings.Contains(out, "without effect here: INSTALL_K3S_TYPE\n") ||
		!strings.Contains(out, "ctr is /usr/local/bin/ctr, which is not Umiak's") {
		t.Errorf("install.sh printed:\n%s", out)
	}
	b.up()
	b.namespace()
	b.sub("Links", func(b *box) { b.links() })
	b.sub("Settings", func(b *box) {
		n, err := b.Kube.CoreV1().Nodes().Get(b.soon(), "inst", metav1.GetOptions{})
		b.must(err)
		if n.Labels["from"] != "env" || len(taintsAsked(n)) != 2 {
			b.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
		}
		for file, mode := range map[string]os.FileMode{"umiak/token": 0o600,
			"umiak/config.yaml.d/50-install.yaml": 0o600, "umiak/umiak.env": 0o600,
			"systemd/system/umiak.service": 0o600} {
			info, err := os.Stat(b.hostPath("/etc", file))
			if err != nil || info.Mode().Perm() != mode {
				b.Errorf("%s: %v, %v", file, info, err)
			}
		}
		if out, err := b.M.Run(b.soon(), "/usr/bin/systemctl", "is-enabled", "umiak"); err != nil {
			b.Errorf("not enabled: %s", out)
		}
		if disks := b.systemctl("show", "--property=RequiresMountsFor", "--value",
			"umiak"); !slices.Contains(strings.Fields(disks), "/var/lib/umiak") {
			b.Errorf("the service waits for the disks of %q", disks)
		}
	})
	b.apply(deployment + "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n")
	b.rolledOut("web")
	have := b.containers()

	b.sub("Again", func(b *box) {
		pid, files := b.mainPID(), b.files()
		out := b.mustInstall(m, m.now, "", "")
		if !strings.Contains(out, "nothing was to be done") || b.mainPID() != pid {
			b.Errorf("it did something:\n%s", out)
		}
		if diff := files.Diff(b.files()); len(diff) > 0 {
			b.Errorf("changed:\n%s", strings.Join(diff, "\n"))
		}
		b.refused(m, m.now, "UMIAK_URL=https://10.0.0.1:6443 UMIAK_TOKEN=x", "agent", "installed as server")
	})

	b.sub("AnotherBuild", func(b *box) {
		old := b.installed()
		acknowledged := b.writeUntil(func() { b.upgrade("--version", next) })
		if b.installed() == old {
			b.Error("the program is the old one")
		}
		b.up()
		b.untouched(have, "the upgrade")
		b.kept(acknowledged)
		n, err := b.Kube.CoreV1().Nodes().Get(b.soon(), "inst", metav1.GetOptions{})
		b.must(err)
		if n.Labels["from"] != "env" || len(taintsAsked(n)) != 2 {
			b.Errorf("settings were lost: labels %v, taints %v", n.Labels, n.Spec.Taints)
		}
		b.answers("cli")
		b.kubectl("delete", "pod", "cli", "--force", "--grace-period=0")
		b.gonePod("cli")
	})

	b.sub("BuildThatCrashes", func(b *box) {
		b.must(m.maker.Make(m.dir, "v3", map[string]io.Reader{"umiak": strings.NewReader(
			"#!/bin/sh\ncase $1 in --version) echo umiak version v3 ;; server) echo 'no such thing as a cluster'; exit 1 ;; esac\n")}))
		files, old := b.files(), b.installed()
		out, err := b.install(m, "v3", "", "server --node-label new=label")
		if err == nil || !strings.Contains(out, "no such thing as a cluster") ||
			!strings.Contains(out, "the old version runs again") {
			b.Errorf("%v\n%s", err, out)
		}
		b.up()
		if b.installed() != old {
			b.Error("the new program is still there")
		}
		if diff := files.Diff(b.files()); len(diff) > 0 {
			b.Errorf("changed:\n%s", strings.Join(diff, "\n"))
		}
		b.untouched(have, "the upgrade that failed")
		b.refused(m, m.now, "INSTALL_UMIAK_VERSION=v9", "", "404")
		b.forged(m)
		for version, why := range map[string]string{"v1.30.0": "older than", "v1.99.0": "more than one minor version"} {
			b.must(m.maker.Make(m.dir, version,
				map[string]io.Reader{"umiak": strings.NewReader("#!/bin/sh\necho umiak version " + version + "\n")}))
			b.refused(m, version, "", "", why)
		}
		b.up()
		b.untouched(have, "an upgrade that was refused")
	})

	b.sub("PowerLoss", func(b *box) {
		old := b.installed()
		m.slow.Store(true)
		done := make(chan error, 1)
		go func() { _, err := b.install(m, m.now, "", ""); done <- err }()
		b.must(cluster.Eventually(b.soon(), func(context.Context) error {
			if len(b.staged("*.gz")) == 0 {
				return errors.New("the download has not begun")
			}
			return nil
		}))
		b.must(b.M.PowerOff())
		<-done
		m.slow.Store(false)
		b.up()
		if b.installed() != old {
			b.Error("the program has changed")
		}
		archive := filepath.Join(b.M.Dir, "tmp", "v1.tar")
		out, err := exec.CommandContext(b.soon(), "tar", "-C", m.dir, "-cf", archive, m.now).CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		b.upgrade("--from", archive)
		b.must(os.Remove(archive))
		b.up()
		if b.installed() == old {
			b.Error("the program has not changed")
		}
		if left := b.staged(""); len(left) > 0 {
			b.Errorf("left: %v", left)
		}
	})

	b.sub("PowerLossInTheSwitch", func(b *box) { b.powerLossInTheSwitch(m) })

	b.sub("Uninstall", func(b *box) {
		out, err := b.M.Run(b.soon(), "/usr/local/bin/umiak", "uninstall")
		if err == nil || !strings.Contains(out+err.Error(), "--yes") || !strings.Contains(out, "/usr/local/bin/umiak") {
			b.Errorf("without --yes: %v\n%s", err, out)
		}
		out, err = b.M.Run(b.within(2*patience), "/usr/local/bin/umiak", "uninstall", "--yes")
		b.must(err)
		if diff := append(before.Diff(b.state()), files.Diff(b.files())...); len(diff) > 0 {
			b.Errorf("left behind:\n%s\nuninstall said:\n%s", strings.Join(diff, "\n"), out)
		}
		if left, err := os.ReadDir(b.hostPath("/var/lib/umiak")); err != nil || len(left) > 0 {
			b.Errorf("data is left: %v, %v", left, err)
		}
	})
}

// refusedOfK3s runs installations with variables of k3s' installer that would mean something else here.
func (b *box) refusedOfK3s(m *mirror) {
	b.Helper()
	for vars, why := range map[string]string{
		"INSTALL_K3S_VERSION=v1.37.2+k3s1":                        "is a release of k3s",
		"INSTALL_K3S_CHANNEL=v1.36":                               "there are no channels",
		"INSTALL_K3S_COMMIT=abc":                                  "names builds of k3s",
		"INSTALL_K3S_NAME=second":                                 "a machine has one service",
		"INSTALL_K3S_SYSTEMD_DIR=/run/systemd/system":             "goes into /etc/systemd/system",
		"INSTALL_K3S_BIN_DIR_READ_ONLY=true":                      "an update replaces the program",
		"INSTALL_K3S_NONSENSE=x":                                  "INSTALL_K3S_NONSENSE is no variable",
		"INSTALL_K3S_SYMLINK=always":                              "neither skip nor force",
		"INSTALL_K3S_SKIP_DOWNLOAD=true":                          "/usr/local/bin/umiak is not there",
		"K3S_URL=https://10.0.0.1:6443 UMIAK_URL=https://h:6443":  "set to different values",
		"K3S_CONFIG_FILE=/etc/rancher/k3s/config.yaml K3S_URL= ":  "UMIAK_CONFIG cannot be kept",
		"INSTALL_K3S_EXEC='server -c /etc/rancher/k3s/k3s.yaml' ": "--config cannot be kept",
	} {
		b.refused(m, m.now, vars, "", why)
	}
}

// links checks the names under which the program is found after an installation.
func (b *box) links() {
	b.Helper()
	for tool, want := range map[string]string{"kubectl get nodes -o name": "node/inst", "crictl pods -q": "",
		"crictl --version": "crictl version v", "ctr version": "theirs"} {
		out, err := b.M.Run(b.soon(), "/bin/sh", "-c", tool)
		if err != nil || !strings.Contains(out, want) {
			b.Errorf("%s: %q, %v", tool, out, err)
		}
	}
	for _, tool := range []string{"kubectl", "crictl"} {
		to, err := b.M.Run(b.soon(), "/usr/bin/readlink", "/usr/local/bin/"+tool)
		if err != nil || to != "umiak\n" {
			b.Errorf("%s leads to %q, %v", tool, to, err)
		}
	}
}

// powerLossInTheSwitch: the new version never becomes ready, and the installer has ended before it can be taken
// back.
func (b *box) powerLossInTheSwitch(m *mirror) {
	b.Helper()
	b.must(m.maker.Make(m.dir, "v4", map[string]io.Reader{"umiak": strings.NewReader(
		"#!/bin/sh\ncase $1 in --version) echo umiak version v4 ;; server) exec sleep 1000 ;; esac\n")}))
	old, before := b.installed(), b.files()
	for name, c := range map[string]struct {
		until func() error // the moment
		then  func()
	}{
		"files are replaced": {func() error { return b.there("/etc/umiak/unfinished") },
			func() { b.must(b.M.PowerOff()) }},
		"the new one starts": {b.sleeps, func() { b.must(b.M.PowerOff()) }},
		"no power loss, but the installer is killed": {b.sleeps, func() {
			_, err := b.M.Run(b.soon(), "/bin/sh", "-c", "read -r pid _ </run/umiak-install && kill -9 $pid")
			b.must(err)
			b.systemctl("restart", "umiak")
		}},
	} {
		done := make(chan string, 1)
		go func() {
			out, err := b.install(m, "v4", "", "server --node-label new=label")
			done <- fmt.Sprint(out, err)
		}()
		b.must(cluster.Eventually(b.soon(), func(context.Context) error {
			select {
			case out := <-done:
				b.Fatalf("%s: the installation has ended:\n%s", name, out)
			default:
			}
			return c.until()
		}))
		c.then()
		<-done
		b.up()
		if b.installed() != old {
			b.Errorf("%s: the program has changed", name)
		}
		if diff := before.Diff(b.files()); len(diff) > 0 {
			b.Errorf("%s: changed:\n%s\n%s", name, strings.Join(diff, "\n"), b.systemLog())
		}
	}
}

func (b *box) there(file string) error {
	_, err := os.Stat(b.hostPath(file))
	return err
}

// sleeps says whether the version runs that never becomes ready.
func (b *box) sleeps() error {
	comm, err := b.M.Run(b.soon(), "/bin/sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value umiak)/comm")
	if err == nil && comm != "sleep\n" {
		err = fmt.Errorf("what runs is %s", comm)
	}
	return err
}

// TestOpenRC installs where OpenRC looks after services: Debian's own, in a machine with nothing else of an init
// system.
func TestOpenRC(t *testing.T) {
	t.Parallel()
	b := &box{off(t, cluster.Options{Name: "rc", Service: true, Images: []string{}})}
	b.ctx = b.within(8 * time.Minute)
	b.bare()
	// The data are on a disk of their own.
	disk, data := filepath.Join(b.M.Dir, "disk"), filepath.Join(b.M.Dir, "data")
	b.Cluster.DataDir = disk
	b.must(errors.Join(os.Mkdir(disk, 0o755), os.Mkdir(data, 0o755)))
	b.run("/usr/bin/mount", "--bind", disk, data)
	b.must(b.AddImages("test.tar", images.App1, images.App2))
	m := newMirror(t, b.M.LAN(), "umiak")
	next := m.next(t)
	b.must(b.M.Do(func() error {
		var errs []error // what openrc makes at boot
		for _, d := range []string{"daemons", "exclusive", "failed", "hotplugged", "inactive", "options", "scheduled",
			"started", "starting", "stopping", "tmp", "wasinactive"} {
			errs = append(errs, os.MkdirAll("/run/openrc/"+d, 0o755))
		}
		return errors.Join(append(errs, os.WriteFile("/run/openrc/softlevel", []byte("default"), 0o644))...)
	}))
	before := b.state()
	// /usr/local is this host's own.
	program := filepath.Join(b.M.Dir, "opt", "umiak")
	out := b.mustInstall(m, m.now, "INSTALL_UMIAK_BIN_DIR="+filepath.Dir(program)+
		" UMIAK_NODE_LABEL=from=env UMIAK_DATA_DIR="+data, "")
	if !strings.Contains(out, "next: "+program+" kubectl") {
		t.Errorf("it does not say where the program is:\n%s", out)
	}
	b.must(b.Cluster.Ready(b.within(2 * patience)))
	b.withoutDisk(program, disk, data)
	b.namespace()
	b.apply(deployment)
	b.rolledOut("web")
	have := b.containers()
	n, err := b.Kube.CoreV1().Nodes().Get(b.soon(), "rc", metav1.GetOptions{})
	if err != nil || n.Labels["from"] != "env" {
		t.Errorf("labels %v, %v", n.Labels, err)
	}
	if out := b.mustInstall(m, m.now, "", ""); !strings.Contains(out, "nothing was to be done") {
		t.Errorf("again it said:\n%s", out)
	}
	b.run(program, "token", "list") // finds the data as the service does
	settings := func(text string) {
		b.must(b.M.Do(func() error { return os.WriteFile("/etc/umiak/config.yaml", []byte(text), 0o600) }))
	}
	settings("cluster-cidr: [nonsense]\n")
	b.fails(m, m.now, "", "", "cluster-cidr", "nothing was changed")
	settings("node-label+: [written=later]\n")
	if out := b.mustInstall(m, m.now, "", ""); !strings.Contains(out, "the settings are others") {
		t.Errorf("with other settings it said:\n%s", out)
	}
	b.must(m.maker.Make(m.dir, "v1.30.0",
		map[string]io.Reader{"umiak": strings.NewReader("#!/bin/sh\necho umiak version v1.30.0\n")}))
	b.fails(m, "v1.30.0", "", "", "older than")
	b.mustInstall(m, next, "", "")
	b.must(b.Cluster.Ready(b.within(2 * patience)))
	b.untouched(have, "the upgrade")
	out, err = b.M.Run(b.within(2*patience), program, "uninstall", "--yes")
	b.must(err)
	if left, err := os.ReadDir(disk); err != nil || len(left) > 0 {
		t.Errorf("data is left: %v, %v\nuninstall said:\n%s", left, err, out)
	}
	if diff := before.Diff(b.state()); len(diff) > 0 {
		t.Errorf("left behind:\n%s\nuninstall said:\n%s", strings.Join(diff, "\n"), out)
	}
}

// run runs a command on the machine, which must succeed.
func (b *box) run(name string, args ...string) string {
	b.Helper()
	out, err := b.M.Run(b.soon(), name, args...)
	b.must(err)
	return out
}

// withoutDisk starts the service, and uninstalls, while the disk with the data is not mounted.
func (b *box) withoutDisk(program, disk, data string) {
	b.Helper()
	b.run("/usr/sbin/rc-service", "umiak", "stop")
	b.run("/usr/bin/umount", "--recursive", "--lazy", data)
	for args, want := range map[string]string{
		"server --data-dir " + data: "the data of this node are not there",
		"uninstall --yes":           "keys and data would be left",
	} {
		if out, err := b.M.Run(b.soon(), program, strings.Fields(args)...); err == nil ||
			!strings.Contains(out+err.Error(), want) {
			b.Errorf("%s without the disk: %v\n%s", args, err, out)
		}
	}
	if left, err := os.ReadDir(data); err != nil || len(left) > 0 {
		b.Errorf("without the disk something was made: %v, %v", left, err)
	}
	b.run("/usr/bin/mount", "--bind", disk, data)
	b.run("/usr/sbin/rc-service", "umiak", "start")
	b.must(b.Cluster.Ready(b.within(2 * patience)))
}

// staged are the files that match in folders where an installation is prepared, "" the folders.
func (b *box) staged(match string) (all []string) {
	b.Helper()
	b.must(b.M.Do(func() (err error) {
		all, err = filepath.Glob(filepath.Join("/usr/local/bin/.umiak-install.*", match))
		return err
	}))
	return all
}

// forged tries releases that have been altered.
func (b *box) forged(m *mirror) {
	b.Helper()
	dir := filepath.Join(m.dir, "forged")
	b.must(m.maker.Make(m.dir, "forged", map[string]io.Reader{"umiak": strings.NewReader("#!/bin/sh\n")}))
	gz, err := filepath.Glob(filepath.Join(dir, "*.gz"))
	b.must(err)
	raw, err := os.ReadFile(gz[0])
	b.must(err)
	b.must(os.WriteFile(gz[0], append(bytes.Clone(raw), 0), 0o600))
	b.refused(m, "forged", "", "", "damaged", "SHA-256")
	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	b.must(err)
	b.must(os.WriteFile(filepath.Join(dir, "SHA256SUMS"), append(sums, "\n"...), 0o600))
	b.refused(m, "forged", "", "", "signature")
}

// TestInstallFleet: a server and two agents, each by its line, then all of them are rebooted.
func TestInstallFleet(t *testing.T) {
	t.Parallel()
	l := lan(t)
	b := newBoxOn(t, "srv", l)
	m := newMirror(t, l, "umiak", "umiak-agent")
	b.bare()
	b.mustInstall(m, m.now, "", "")
	b.up()
	b.namespace()
	agents := []*box{newBoxOn(t, "ag1", l), newBoxOn(t, "ag2", l)}
	join := "UMIAK_URL=" + b.url() + " UMIAK_TOKEN=" + b.token("--kind", "agent")
	agents[0].bare()
	before, files := agents[0].state(), agents[0].files()
	for _, a := range agents {
		a.mustInstall(m, m.now, join, "")
		b.nodeReady(a.M.Name, a.Cluster)
	}
	next := m.next(t)
	b.must(m.maker.Make(m.dir, crashes, map[string]io.Reader{"umiak-agent": strings.NewReader(
		"#!/bin/sh\ncase $1 in --version) echo umiak-agent version " + crashes +
			" ;; check) ;; *) echo 'no such thing as a cluster'; exit 1 ;; esac\n")}))
	b.upgradeCluster(m, agents, next)
	for i, a := range append(agents, b) {
		b.must(debian.Reboot(b.within(2*patience), a.M))
		if i == 2 {
			b.up()
		}
	}
	for _, a := range agents {
		b.must(debian.Booted(b.within(2*patience), a.M))
		b.apply(fmt.Sprintf(onNode, "on-"+a.M.Name, a.M.Name))
		b.pod(named("on-"+a.M.Name), isReady)
	}
	a := agents[0]
	_, err := a.M.Run(b.within(2*patience), "/usr/local/bin/umiak-agent", "uninstall", "--yes")
	b.must(err)
	if diff := append(before.Diff(a.state()), files.Diff(a.files())...); len(diff) > 0 {
		b.Errorf("left behind:\n%s", strings.Join(diff, "\n"))
	}
}

// crashes is a version whose agent does not start.
const crashes = "v1.37.9+crashes"

// upgradeCluster upgrades a server and two agents by one object.
func (b *box) upgradeCluster(m *mirror, agents []*box, next string) {
	b.Helper()
	upgrade := func(args ...string) (string, error) {
		return b.M.Run(b.within(4*patience), "/usr/local/bin/umiak", append([]string{"upgrade", "cluster"}, args...)...)
	}
	// status waits until the Upgrade says words.
	status := func(name string, words ...string) {
		b.Helper()
		b.must(cluster.Eventually(b.within(3*patience), func(ctx context.Context) error {
			out, err := b.M.Run(ctx, "/usr/local/bin/umiak", "kubectl", "get", "upgrade", name, "-o",
				"jsonpath={.status.phase}: {.status.message}")
			for _, w := range words {
				if err == nil && !strings.Contains(out, w) {
					err = fmt.Errorf("Upgrade %s is %s; it does not say %q", name, out, w)
				}
			}
			return err
		}))
	}
	versions := func() (all []string) {
		b.Helper()
		list, err := b.Kube.CoreV1().Nodes().List(b.soon(), metav1.ListOptions{})
		b.must(err)
		for _, n := range list.Items {
			all = append(all, n.Name+" "+n.Status.NodeInfo.KubeletVersion)
		}
		return all
	}
	have := map[*box][]string{}
	for _, a := range agents {
		b.apply(fmt.Sprintf(onNode, "keep-"+a.M.Name, a.M.Name))
		b.pod(named("keep-"+a.M.Name), isReady)
		have[a] = a.containers()
	}
	before := versions()
	out, err := upgrade("--version", next, "--dry-run")
	if err != nil || !strings.Contains(out, "first: srv is asked to go from") {
		b.Errorf("dry run: %v\n%s", err, out)
	}
	if out, err := upgrade("--version", "v1.30.0", "--dry-run"); err == nil ||
		!strings.Contains(out+err.Error(), "is older") {
		b.Errorf("back seven versions: %v\n%s", err, out)
	}
	if now := versions(); !slices.Equal(now, before) {
		b.Errorf("a dry run changed %v to %v", before, now)
	}

	b.sub("Crashes", func(b *box) {
		out, err := upgrade("--version", crashes, "--name", "bad", "--node-selector", wellknown.ServerRole+"!=true")
		if err == nil || !strings.Contains(out, "no such thing as a cluster") {
			b.Errorf("%v\n%s", err, out)
		}
		b.nodeReady("ag1", agents[0].Cluster)
		if now := versions(); !slices.Equal(now, before) {
			b.Errorf("an upgrade that failed changed %v to %v", before, now)
		}
		b.kubectl("delete", "upgrade", "bad")
	})

	// One that may not be disturbed; and the power of a node goes while it gets its program.
	b.apply("apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: keep}\nspec: {minAvailable: 1, selector: {matchLabels: {app: keep-ag1}}}\n")
	acknowledged := b.writeUntil(func() {
		if out, err := upgrade("--version", next, "--detach"); err != nil {
			b.Errorf("%v\n%s", err, out)
		}
		status("cluster", "Waiting", "ag1 waits for a PodDisruptionBudget", "keep for pod keep-ag1")
	})
	b.kept(acknowledged)
	m.slow.Store(true)
	b.kubectl("delete", "pdb", "keep")
	a := agents[0]
	b.must(cluster.Eventually(b.within(2*patience), func(context.Context) error {
		if len(a.staged("*.gz")) == 0 {
			return errors.New("the download has not begun")
		}
		return nil
	}))
	b.must(a.M.PowerOff())
	m.slow.Store(false)
	b.must(a.M.Boot())
	b.must(debian.Booted(b.within(2*patience), a.M))
	out, err = upgrade() // as a user who asks for the progress
	b.must(err)
	b.Logf("%s", out)
	for _, v := range versions() {
		if !strings.HasSuffix(v, " "+next) {
			b.Errorf("it is complete, and there is %s", v)
		}
	}
	agents[1].untouched(have[agents[1]], "the upgrade")
	for _, a := range agents {
		b.pod(named("keep-"+a.M.Name), isReady)
	}
	b.kubectl("delete", "upgrade", "cluster")
}
