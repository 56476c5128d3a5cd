package addons_test

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"github.com/umiak-io/umiak/agent/host/nodeip"
	"github.com/umiak-io/umiak/internal/config"
	"github.com/umiak-io/umiak/internal/instance"
	"github.com/umiak-io/umiak/internal/lifecycle"
	"github.com/umiak-io/umiak/internal/logging"
	"github.com/umiak-io/umiak/internal/testing/eventually"
	"github.com/umiak-io/umiak/internal/testing/testns"
	"github.com/umiak-io/umiak/manifests"
	"github.com/umiak-io/umiak/server"
	"github.com/umiak-io/umiak/server/addons"
)

const nodeIP = "192.0.2.10"

// controlPlanes is how many there are: records are a cluster's, so each test has one for itself, and mostly waits.
const controlPlanes = 5

// clusters are the control planes that no test uses at the moment.
var clusters = make(chan *rest.Config, controlPlanes)

// TestMain starts real control planes in a network namespace of its own: the binary starts itself again in one, and
// again for each control plane.
func TestMain(m *testing.M) {
	if dir := os.Getenv("UMIAK_TEST_SERVE"); dir != "" {
		if err := serve(dir, os.Getenv("UMIAK_TEST_PORT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(testns.Run(func() int {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		flag.Parse()
		if err := flag.Set("test.parallel", strconv.Itoa(controlPlanes)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code, err := withClusters(m.Run)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}, syscall.CLONE_NEWNS))
}

func withClusters(run func() int) (code int, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return 0, err
	}
	addr, err := netlink.ParseAddr(nodeIP + "/32")
	if err := errors.Join(err, netlink.AddrAdd(lo, addr), netlink.LinkSetUp(lo)); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("/tmp", "umiak-addons-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	var started []*bufio.Scanner
	for i := range controlPlanes {
		d := filepath.Join(dir, strconv.Itoa(i))
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "UMIAK_TEST_SERVE="+d, "UMIAK_TEST_PORT="+strconv.Itoa(6443+i))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		defer func() {
			_ = cmd.Process.Kill() // its folder goes with it
			_ = cmd.Wait()
		}()
		started = append(started, bufio.NewScanner(out))
	}
	for _, out := range started {
		if !out.Scan() {
			return 0, errors.New("a control plane has ended before it was ready")
		}
		c, err := clientcmd.BuildConfigFromFlags("", out.Text())
		if err != nil {
			return 0, err
		}
		clusters <- c
	}
	return run(), nil
}

// serve runs a control plane until the process is killed, and prints the administrator's kubeconfig when it is ready.
func serve(dir, port string) error {
	log, _, err := logging.Setup(logging.Config{Level: "error", Format: "text"}, os.Stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var c server.Config
	config.Defaults(&c)
	c.DataDir, c.RunDir = filepath.Join(dir, "data"), filepath.Join(dir, "run")
	c.NodeIP = nodeip.At(netip.MustParseAddr(nodeIP))
	c.DisableAgent = true // no node runs in this process
	if err := c.HTTPSPort.UnmarshalText([]byte(port)); err != nil {
		return err
	}
	release, err := instance.Acquire(c.Dirs())
	if err != nil {
		return err
	}
	defer release()
	addrs, err := server.Addresses(ctx, c, log)
	if err != nil {
		return err
	}
	s, err := server.New(c, server.Start{Addresses: addrs}, log)
	if err != nil {
		return err
	}
	// The tests are the only ones that apply manifests.
	parts := slices.DeleteFunc(s.Parts(server.NodeHooks{}),
		func(p lifecycle.Part) bool { return p.Name == "manifests" })
	g, err := lifecycle.New(slog.Default(), parts...)
	if err != nil {
		return err
	}
	go func() {
		if g.WaitReady(ctx) == nil {
			fmt.Println(c.Dirs().AdminKubeconfig())
		}
	}()
	return g.Run(ctx)
}

// fixture is one server's manifests; a test may start it several times.
type fixture struct {
	t        testing.TB
	cluster  *rest.Config
	name     string
	dir      string
	embedded fs.FS
	vars     map[string]string
	disable  []string
	left     func(context.Context, string, bool) (bool, error)
	events   *record.FakeRecorder
	client   *kubernetes.Clientset
	writes   atomic.Int32 // requests other than GET
	writesTo sync.Map     // their number by the object's name, *atomic.Int32
	// settlings counts the files of settled.
	settlings int
	reads     atomic.Int32

	*addons.Controller
	stop func()
}

// newFixture has the test run beside others, with a cluster of its own.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	t.Parallel()
	cluster := <-clusters
	t.Cleanup(func() { clusters <- cluster })
	return fixtureOn(t, cluster)
}

func fixtureOn(t testing.TB, cluster *rest.Config) *fixture {
	f := &fixture{t: t, cluster: cluster, name: strings.ToLower(t.Name()), dir: filepath.Join(t.TempDir(), "manifests"),
		embedded: fstest.MapFS{},
		events:   record.NewFakeRecorder(1000), stop: func() {}}
	cfg := rest.CopyConfig(cluster)
	cfg.QPS = -1
	f.client = kubernetes.NewForConfigOrDie(cfg)
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.Controller != nil && len(f.Status()) == 0 {
			f.stop()
			return
		}
		// What the test left is pruned as it would be for a user: by taking the files away.
		f.stop()
		_ = os.RemoveAll(f.dir)
		f.write(".keep", "") // an empty folder proves nothing
		f.embedded, f.disable = fstest.MapFS{}, nil
		f.start()
		f.eventually("an empty list", func() bool { return len(f.Status()) == 0 })
		f.stop()
	})
	return f
}

type counting struct {
	http.RoundTripper
	f *fixture
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		c.f.reads.Add(1)
	} else {
		c.f.writes.Add(1)
		n, _ := c.f.writesTo.LoadOrStore(path.Base(r.URL.Path), new(atomic.Int32))
		n.(*atomic.Int32).Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

func (f *fixture) start() {
	f.t.Helper()
	cfg := rest.CopyConfig(f.cluster)
	cfg.WrapTransport = func(rt http.RoundTripper) http.RoundTripper { return counting{rt, f} }
	level := slog.LevelError
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	c, err := addons.New(addons.Config{Dir: f.dir, Embedded: f.embedded, Vars: f.vars, Disable: f.disable,
		Server: f.name, Left: f.left, REST: cfg, Recorder: f.events,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))})
	if err != nil {
		f.t.Fatal(err)
	}
	f.Controller = c
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { close(ready) }) }()
	var stopped atomic.Bool
	f.stop = func() {
		if stopped.CompareAndSwap(false, true) {
			cancel()
			if err := <-done; err != nil {
				f.t.Error(err)
			}
		}
	}
	select {
	case <-ready:
	case <-time.After(time.Minute):
		f.t.Fatal("not ready")
	}
}

// write puts a file in, as an editor or an administrator would; it counts as settled.
func (f *fixture) write(name, data string) {
	f.t.Helper()
	p := filepath.Join(f.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.t.Helper()
	eventually.Nil(f.t, what, func() error {
		if ok() {
			return nil
		}
		return fmt.Errorf("%+v", f.Status())
	})
}

// settled returns once everything that happened before to files and to ConfigMaps has been handled: a file that comes
// now is applied, and its ConfigMap, which is deleted, is there again.
func (f *fixture) settled() {
	f.t.Helper()
	f.settlings++
	name := fmt.Sprintf("settled%d", f.settlings)
	f.write(name+".yaml", cm(name, "1"))
	f.is(name, addons.Applied)
	if err := f.client.CoreV1().ConfigMaps("default").Delete(f.t.Context(), name, meta.DeleteOptions{}); err != nil {
		f.t.Fatal(err)
	}
	f.eventually("the return of "+name, func() bool { return f.configMap(name) != nil })
}

// written returns how many requests have written an object with this name.
func (f *fixture) written(name string) int32 {
	if n, ok := f.writesTo.Load(name); ok {
		return n.(*atomic.Int32).Load()
	}
	return 0
}

func (f *fixture) state(name string) (addons.State, string) {
	for _, s := range f.Status() {
		if s.Name == name {
			return s.State, s.Error
		}
	}
	return "", ""
}

func (f *fixture) is(name string, want addons.State) {
	f.t.Helper()
	f.eventually(name+" being "+string(want), func() bool { s, _ := f.state(name); return s == want })
}

func (f *fixture) configMap(name string) *core.ConfigMap {
	cm, err := f.client.CoreV1().ConfigMaps("default").Get(context.Background(), name, meta.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return cm
}

func (f *fixture) event(word string) {
	f.t.Helper()
	for {
		select {
		case e := <-f.events.Events:
			if strings.Contains(e, word) {
				return
			}
		case <-time.After(20 * time.Second):
			f.t.Fatalf("no event %s", word)
		}
	}
}

func cm(name, value string) string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: " + name + "}\ndata: {key: \"" + value + "\"}\n---\n"
}

func TestEmbeddedManifests(t *testing.T) {
	f := newFixture(t)
	vars, err := manifests.Vars(manifests.Cluster{Domain: "cluster.local",
		DNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}})
	if err != nil {
		t.Fatal(err)
	}
	f.embedded, f.vars = manifests.FS, vars
	begun := time.Now()
	f.start()
	t.Logf("ready after %s with %d reads and %d writes", time.Since(begun).Round(time.Millisecond), f.reads.Load(),
		f.writes.Load())
	for _, s := range f.Status() {
		if s.State != addons.Applied {
			t.Errorf("%+v", s)
		}
	}
	svc, err := f.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", meta.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.43.0.10" {
		t.Fatal(svc.Spec, err)
	}
	f.stop()
	// A restart finds everything as it was, and neither writes nor asks for single objects.
	f.reads.Store(0)
	f.writes.Store(0)
	begun = time.Now()
	f.start()
	t.Logf("restarted after %s with %d reads", time.Since(begun).Round(time.Millisecond), f.reads.Load())
	if n := f.writes.Load(); n > 0 {
		t.Errorf("%d writes though nothing changed", n)
	}
	// The user's file of the same name comes first, and goes again.
	f.write("dns.yaml", cm("mydns", "1"))
	f.eventually("the override", func() bool { return f.configMap("mydns") != nil })
	f.eventually("the built-in's going", func() bool {
		_, err := f.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", meta.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	f.remove("dns.yaml")
	f.eventually("the built-in's return", func() bool {
		_, err := f.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", meta.GetOptions{})
		return err == nil && f.configMap("mydns") == nil
	})
	// --disable removes it.
	f.stop()
	f.disable = []string{"dns"}
	f.start()
	f.is("dns", addons.Disabled)
	if _, err := f.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns",
		meta.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

func TestApplyChangePrune(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("app.yaml", cm("a1", "1")+cm("a2", "1"))
	f.is("app", addons.Applied)
	if f.configMap("a1") == nil || f.configMap("a2") == nil {
		t.Fatal("not there")
	}
	f.write("app.yaml", cm("a1", "2")+cm("a3", "1"))
	f.eventually("the change", func() bool {
		a1 := f.configMap("a1")
		return a1 != nil && a1.Data["key"] == "2" && f.configMap("a2") == nil && f.configMap("a3") != nil
	})
	f.event("Pruned")
	// A file in a folder that was just made, and one that comes by renaming.
	f.write("deep/er/more.yml", cm("a4", "1"))
	f.write("x.tmp", cm("a5", "1"))
	if err := os.Rename(filepath.Join(f.dir, "x.tmp"), filepath.Join(f.dir, "x.yaml")); err != nil {
		t.Fatal(err)
	}
	f.eventually("files of all kinds", func() bool { return f.configMap("a4") != nil && f.configMap("a5") != nil })
	f.remove("app.yaml")
	f.eventually("the end", func() bool { return f.configMap("a1") == nil && f.configMap("a3") == nil })
	// While we are away.
	f.stop()
	f.remove("x.yaml")
	f.write("deep/er/more.yml", cm("a6", "1"))
	f.start()
	f.eventually("what happened meanwhile", func() bool {
		return f.configMap("a4") == nil && f.configMap("a5") == nil && f.configMap("a6") != nil
	})
	f.eventually("no record's staying", func() bool { return len(f.Status()) == 1 })
}

func TestDriftIsUndone(t *testing.T) {
	f := newFixture(t)
	f.start()
	f.write("drift.yaml", cm("d1", "1")+cm("d2", "1"))
	f.is("drift", addons.Applied)
	maps := f.client.CoreV1().ConfigMaps("default")
	patch := func(p string) {
		t.Helper()
		if _, err := maps.Patch(t.Context(), "d1", types.MergePatchType, []byte(p), meta.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	patch(`{"data":{"key":"other","mine":"stays"}}`)
	f.eventually("the value's return", func() bool { return f.configMap("d1").Data["key"] == "1" })
	if f.configMap("d1").Data["mine"] != "stays" {
		t.Error("somebody else's field is gone")
	}
	patch(`{"data":{"key":null}}`)
	f.eventually("the key's return", func() bool { return f.configMap("d1").Data["key"] == "1" })
	patch(`{"metadata":{"labels":{"umiak.io/manifest":null}}}`)
	f.eventually("the label's return", func() bool { return f.configMap("d1").Labels["umiak.io/manifest"] == "drift" })
	if err := maps.Delete(t.Context(), "d2", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.eventually("the object's return", func() bool { return f.configMap("d2") != nil })
	// A change of fields that are not ours costs nothing.
	writes := f.written("d1")
	patch(`{"data":{"mine":"again"}}`)
	f.settled()
	if f.written("d1") != writes {
		t.Error("applied without need")
	}
	// While we are away.
	f.stop()
	patch(`{"data":{"key":"changed"}}`)
	if err := maps.Delete(t.Context(), "d2", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.eventually("what happened meanwhile", func() bool {
		return f.configMap("d1").Data["key"] == "1" &&
			f.configMap("d2") != nil
	})
}

func TestABrokenFileHoldsUpNoOther(t *testing.T) {
	f := newFixture(t)
	f.write("good.yaml", cm("b1", "1"))
	f.write("bad.yaml", cm("b2", "1"))
	f.start()
	f.is("bad", addons.Applied)
	f.write("bad.yaml", "apiVersion: v1\nkind: [")
	f.is("bad", addons.Invalid)
	f.event("InvalidManifest")
	if f.configMap("b2") == nil {
		t.Error("a broken file must not prune")
	}
	f.write("good.yaml", cm("b1", "2"))
	f.eventually("the good one", func() bool { return f.configMap("b1").Data["key"] == "2" })
	f.write("refused.yaml", cm("b3", "1")+
		"apiVersion: v1\nkind: Service\nmetadata: {name: refused}\nspec: {typo: 1, ports: [{port: 99999}]}\n")
	f.is("refused", addons.Failing)
	f.event("ApplyFailed")
	if f.configMap("b3") == nil {
		t.Error("the sound object of a refused file is missing")
	}
	f.write("bad.yaml", cm("b4", "1"))
	f.eventually("its being put right", func() bool { return f.configMap("b2") == nil && f.configMap("b4") != nil })
	rec, err := f.client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), "umiak-manifest-refused",
		meta.GetOptions{})
	if err != nil || rec.Data["state"] != "failing" || !strings.Contains(rec.Data["error"], "typo") {
		t.Error(rec, err)
	}
}

const crd = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]ss.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: %[1]ss, singular: %[1]s, kind: %[2]s}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
`

func TestKindsAndTheirObjects(t *testing.T) {
	f := newFixture(t)
	f.start()
	begun := time.Now()
	f.write("one.yaml", "apiVersion: example.org/v1\nkind: Boat\nmetadata: {name: b, namespace: harbour}\n---\n"+
		"apiVersion: v1\nkind: Namespace\nmetadata: {name: harbour}\n---\n"+fmt.Sprintf(crd, "boat", "Boat"))
	f.is("one", addons.Applied)
	t.Logf("CRD and object in one file: %s", time.Since(begun).Round(time.Millisecond))
	f.write("early.yaml", "apiVersion: example.org/v1\nkind: Oar\nmetadata: {name: o}\n")
	f.is("early", addons.Failing)
	f.write("late.yaml", fmt.Sprintf(crd, "oar", "Oar"))
	f.is("late", addons.Applied)
	f.is("early", addons.Applied)
	get := func(p string) error {
		return f.client.RESTClient().Get().AbsPath(p).Do(t.Context()).Error()
	}
	if err := get("/apis/example.org/v1/namespaces/harbour/boats/b"); err != nil {
		t.Error(err)
	}
	// Drift of custom objects is seen, too.
	if err := f.client.RESTClient().Delete().AbsPath("/apis/example.org/v1/namespaces/default/oars/o").Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	f.eventually("the oar's return", func() bool { return get("/apis/example.org/v1/namespaces/default/oars/o") == nil })
	f.remove("late.yaml") // with it the kind goes, and early.yaml's object
	f.remove("early.yaml")
	f.remove("one.yaml")
	f.eventually("the end", func() bool {
		return apierrors.IsNotFound(get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boats.example.org")) &&
			apierrors.IsNotFound(get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/oars.example.org")) &&
			len(f.Status()) == 0
	})
}

func TestSkipAndDisable(t *testing.T) {
	f := newFixture(t)
	f.write("s.yaml", cm("s1", "1"))
	f.write("sub/off.yaml", cm("s2", "1"))
	f.start()
	f.is("s", addons.Applied)
	f.is("sub/off", addons.Applied)
	f.write("s.skip", "")
	f.is("s", addons.Skipped)
	f.write("s.yaml", cm("s1", "2"))
	if err := f.client.CoreV1().ConfigMaps("default").Delete(t.Context(), "s1", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.settled()
	if f.configMap("s1") != nil {
		t.Error("applied in spite of .skip")
	}
	f.remove("s.skip")
	f.eventually("its being applied again", func() bool {
		c := f.configMap("s1")
		return c != nil &&
			c.Data["key"] == "2"
	})
	// Skipped, a file may even go, and its objects stay, until the .skip goes.
	f.write("s.yaml.skip", "")
	f.is("s", addons.Skipped)
	f.remove("s.yaml")
	f.settled()
	if f.configMap("s1") == nil {
		t.Error("pruned in spite of .skip")
	}
	f.remove("s.yaml.skip")
	f.eventually("its being pruned", func() bool { return f.configMap("s1") == nil })
	f.stop()
	f.disable = []string{"off"}
	f.start()
	f.eventually("its being removed", func() bool { return f.configMap("s2") == nil })
	f.is("sub/off", addons.Disabled)
}

func TestOnlyWhatWeMadeIsDeleted(t *testing.T) {
	f := newFixture(t)
	maps := f.client.CoreV1().ConfigMaps("default")
	mine := &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: "before"}, Data: map[string]string{"mine": "1"}}
	if _, err := maps.Create(t.Context(), mine, meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer maps.Delete(context.Background(), "before", meta.DeleteOptions{})
	f.start()
	f.write("o.yaml", cm("before", "1")+cm("taken", "1"))
	f.is("o", addons.Applied)
	f.stop()
	// Somebody takes an object over by taking our label off, while we are away.
	if _, err := maps.Patch(t.Context(), "taken", types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"umiak.io/manifest":null}}}`), meta.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	defer maps.Delete(context.Background(), "taken", meta.DeleteOptions{})
	f.remove("o.yaml")
	f.write(".keep", "")
	f.start()
	f.eventually("the end", func() bool { return len(f.Status()) == 0 })
	if c := f.configMap("before"); c == nil || c.Data["mine"] != "1" || c.Labels["umiak.io/manifest"] != "" {
		t.Error("what was there before was deleted or not given back", c)
	}
	if f.configMap("taken") == nil {
		t.Error("what was taken over was deleted")
	}
}

func TestTheSameObjectInTwoFiles(t *testing.T) {
	f := newFixture(t)
	f.write("a.yaml", cm("twice", "a"))
	f.write("b.yaml", cm("twice", "b")+cm("only-b", "1"))
	f.start()
	f.is("a", addons.Applied)
	f.is("b", addons.Failing)
	if _, text := f.state("b"); !strings.Contains(text, "is also in manifest a") {
		t.Error(text)
	}
	if f.configMap("only-b") == nil || f.configMap("twice").Data["key"] != "a" {
		t.Error("wrong objects")
	}
	uid := f.configMap("twice").UID
	f.remove("a.yaml")
	f.is("b", addons.Applied)
	if c := f.configMap("twice"); c == nil || c.Data["key"] != "b" || c.UID != uid {
		t.Error("the object did not move from one file to the other", c)
	}
	f.eventually("the end of a", func() bool { return len(f.Status()) == 1 })
	if c := f.configMap("twice"); c == nil || c.UID != uid {
		t.Error("it was deleted on the way")
	}
}

// TestIdle: nothing is asked and nothing is written while nothing happens.
func TestIdle(t *testing.T) {
	f := newFixture(t)
	vars, _ := manifests.Vars(manifests.Cluster{Domain: "cluster.local",
		DNS: []netip.Addr{netip.MustParseAddr("10.43.0.10")}})
	f.embedded, f.vars = manifests.FS, vars
	f.start()
	f.write("x.yaml", cm("idle", "1"))
	f.is("x", addons.Applied)
	time.Sleep(2 * time.Second)
	reads, writes := f.reads.Load(), f.writes.Load()
	time.Sleep(5 * time.Second)
	if f.reads.Load() != reads || f.writes.Load() != writes {
		t.Errorf("%d reads, %d writes", f.reads.Load()-reads, f.writes.Load()-writes)
	}
}
